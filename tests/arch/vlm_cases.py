"""Tiny random models that see, in the layouts of transformers, and an image for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGE = 90
TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 16, **TOWER}
PIXTRAL = {"model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 8, **TOWER}
SIGLIP = {"image_size": 16, "patch_size": 4, **TOWER}
QWEN = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
MARKS = {"video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}

CASES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": CLIP},
    "llava_next": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": CLIP,
        "image_grid_pinpoints": [[16, 32]],
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 12, **TEXT},
        "vision_config": PIXTRAL,
        "spatial_merge_size": 2,
    },
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", **TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN, "window_size": 16, "fullatt_block_indexes": [1]},
        **MARKS,
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", "head_dim": 8, **TEXT, "rope_parameters": ROPE},
        "vision_config": {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        **MARKS,
    },
}


def build(kind: str, folder: Path, dtype: torch.dtype = torch.float64, **changes: Any) -> Path:
    """A random model of this kind, saved as transformers saves it: under the names that its makers publish."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(kind, image_token_id=IMAGE, tie_word_embeddings=False, **{**CASES[kind], **changes})
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).to(dtype)
    for name, parameter in model.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        noise = torch.randn(parameter.shape, dtype=torch.float64) * scale
        parameter.data.copy_(noise + (1 if "norm" in name and name.endswith("weight") else 0))
    model.save_pretrained(folder)
    return folder


def inputs(kind: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A prompt with one image, as the processor of this kind would make it."""
    generator = torch.Generator().manual_seed(1)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def ids(count: int) -> Tensor:
        return torch.tensor([[1, 7, 3, *[IMAGE] * count, 39, 22, 5, 31]])

    if kind == "llava":
        return {"input_ids": ids(4), "pixel_values": pixels(1, 3, 16, 16)}
    if kind == "llava_next":  # the whole and two tiles of 2x2 patches, a newline behind each of two rows
        sizes = torch.tensor([[16, 32]])
        return {"input_ids": ids(4 + 8 + 2), "pixel_values": pixels(1, 3, 3, 16, 16), "image_sizes": sizes}
    if kind == "mistral3":
        return {"input_ids": ids(4), "pixel_values": pixels(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    if kind in ("idefics3", "smolvlm"):
        return {"input_ids": ids(4), "pixel_values": pixels(1, 1, 3, 16, 16)}
    grid = torch.tensor([[1, 4, 4]])
    prompt = torch.tensor([[1, 7, 92, *[IMAGE] * 4, 93, 39, 22, 5, 31]])
    kinds = (prompt == IMAGE).int()
    return {
        "input_ids": prompt,
        "pixel_values": pixels(16, 3 * 2 * 4 * 4),
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }
