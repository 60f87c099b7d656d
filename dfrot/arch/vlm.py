"""VLMs as transformers builds them: a language model of the table, a vision tower and a projector between them."""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.wrapper import Wrapper

_TOWER, _PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."

LLAVA = Wrapper(  # Pixtral's checkpoints too
    model_type="llava",
    inside="model.language_model",
    outside=(_TOWER, _PROJECTOR),
    writers=(f"{_PROJECTOR}linear_2",),
    published=(
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", _TOWER),
        ("vision_tower.", _TOWER),
        ("multi_modal_projector.", _PROJECTOR),
        ("image_newline", "model.image_newline"),
    ),
)
LLAVA_NEXT = replace(  # a learned vector ends every row of patches
    LLAVA,
    model_type="llava_next",
    outside=(_TOWER, _PROJECTOR, "model.image_newline"),
    vectors=("model.image_newline",),
)
MISTRAL3 = replace(LLAVA, model_type="mistral3")
GEMMA3 = replace(LLAVA, model_type="gemma3", writers=())  # a language model without R1
IDEFICS3 = Wrapper(
    model_type="idefics3",
    inside="model.text_model",
    outside=("model.vision_model.", "model.connector."),
    writers=("model.connector.modality_projection.proj",),
)
SMOLVLM = replace(IDEFICS3, model_type="smolvlm")
QWEN2_5_VL = Wrapper(
    model_type="qwen2_5_vl",
    inside="model.language_model",
    outside=("model.visual.",),
    writers=("model.visual.merger.mlp.2",),
    published=(
        ("visual.", "model.visual."),
        ("model.layers.", "model.language_model.layers."),
        ("model.embed_tokens.", "model.language_model.embed_tokens."),
        ("model.norm.", "model.language_model.norm."),
    ),
    languages={"qwen2_5_vl_text": "qwen2", "qwen2_5_vl": "qwen2"},
)
QWEN3_VL = Wrapper(  # features from several depths of the tower are added behind the first blocks
    model_type="qwen3_vl",
    inside="model.language_model",
    outside=("model.visual.",),
    writers=("model.visual.merger.linear_fc2", "model.visual.deepstack_merger_list.*.linear_fc2"),
    languages={"qwen3_vl_text": "qwen3"},
)

WRAPPERS = {
    wrapper.model_type: wrapper
    for wrapper in (LLAVA, LLAVA_NEXT, MISTRAL3, GEMMA3, IDEFICS3, SMOLVLM, QWEN2_5_VL, QWEN3_VL)
}
