"""A vision part beside a dfq folder: rotating both changes nothing, quantizing the language model loses nothing, and
parts of other models are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import DfqError, InputError, MismatchError, UnsupportedError
from dfrot.generation.multimodal import image_attention_probe, prefill_multimodal
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision.fingerprint import checkpoint_fingerprint
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.llava_layout import CONFIG, VisionConfig, rotate_vision
from dfrot.vision.llava_model import attach_vision, compose, save_vision_of

IMAGE, VOCAB, WIDTH = 120, 128, 64
TEXT = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "rms_norm_eps": 1e-5,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
PROMPT = [3, 17, *[IMAGE] * 4, 44, 61, 90, 12]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A random language model and vision part, both rotated, and the language model in W4A4KV4."""
    root = tmp_path_factory.mktemp("vlm")
    folder = root / "lm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TEXT))
    shapes = describe(TEXT).tensors()
    writer = SafetensorsWriter(folder, [TensorPlan(key, torch.float32, shape) for key, shape in shapes.items()])
    generator = torch.Generator().manual_seed(0)
    for key, shape in shapes.items():
        scale = (1.0 if "embed" in key else 1.5 * shape[-1] ** -0.5) if len(shape) == 2 else 0.2
        values = scale * torch.randn(shape, generator=generator) + (1.0 if "norm" in key else 0.0)
        writer.write(key, values)
    writer.sync()
    torch.manual_seed(0)
    config = VisionConfig(TOWER, IMAGE)
    model = compose(load_model(folder), config)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.bias)
    save_vision_of(model, root / "vision", config)
    settings = RotateSettings(method="orthogonal", dataset=None, seqlen=32)
    rotate(folder, root / "rotated", settings)
    scheme = QuantScheme.parse("w4a4kv4")
    quantize(root / "rotated", None, root / "packed", QuantizeSettings(scheme=scheme, algorithm="rtn"))
    for name in ("rotated", "packed"):
        rotate_vision(root / "vision", root / "rotated", checkpoint_fingerprint(root / name), root / f"vision-{name}")
    return SimpleNamespace(root=root, config=config)


def open_joined(parts: SimpleNamespace, name: str, dtype: Any = None) -> Any:
    folder, vision = parts.root / name, "vision" if name == "lm" else f"vision-{name}"
    return attach_vision(load_model(folder, dtype), parts.root / vision, checkpoint_fingerprint(folder))


def image_tensors(seed: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(seed))}


def test_rotating_both_parts_changes_nothing(parts: SimpleNamespace) -> None:
    ids = torch.tensor([PROMPT])
    before = open_joined(parts, "lm")(input_ids=ids, **image_tensors(0)).logits
    after = open_joined(parts, "rotated")(input_ids=ids, **image_tensors(0)).logits
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))
    other = open_joined(parts, "lm")(input_ids=ids, **image_tensors(1)).logits
    assert not torch.allclose(before, other, atol=1e-2 * float(before.abs().max())), "the image must matter"
    unrotated = attach_vision(load_model(parts.root / "rotated"), parts.root / "vision", "")
    wrong = unrotated(input_ids=ids, **image_tensors(0)).logits
    assert not torch.allclose(before, wrong, atol=1e-2 * float(before.abs().max())), "the projector must be rotated"


@pytest.mark.parametrize("shape", [TreeShape(3), TreeShape(4, 3, 10)])
def test_a_packed_vlm_is_lossless(parts: SimpleNamespace, kit: SimpleNamespace, shape: TreeShape) -> None:
    target = Target(open_joined(parts, "packed", torch.float32))
    answers, probe = set(), image_attention_probe(target, torch.tensor(PROMPT))
    prefill_multimodal(target, torch.tensor(PROMPT), image_tensors(0), target.start(), probe)
    assert 0 < float(probe.scores.sum()) < 1
    for seed in range(4):
        images = ImageInputs(image_tensors(seed))
        expected = plain(target, PROMPT, StopCriteria(24), Sampling(), images=images).tokens
        always_right, always_wrong = (kit.scripted([*PROMPT, *expected], right, VOCAB) for right in (True, False))
        for draft in (always_right, always_wrong, random_draft()):
            out = speculative(target, draft, PROMPT, StopCriteria(24), Sampling(), shape, images=images)
            assert out.tokens == expected
            if draft is always_right:
                assert set(out.accepted[:-1]) == {shape.depth}
        answers.add(tuple(expected))
    assert len(answers) > 1, "the answers must depend on the image"


def random_draft() -> Any:
    from dfrot.draft.models.build import build
    from dfrot.draft.models.config import DraftConfig

    return build(DraftConfig("dream", WIDTH, WIDTH, 96, 4, 2, 16, VOCAB)).requires_grad_(False)


def test_what_does_not_belong_together_is_refused(parts: SimpleNamespace, tmp_path: Path) -> None:
    root, model = parts.root, load_model(parts.root / "packed")
    cases = [
        (lambda: attach_vision(model, root / "vision-packed", "another"), MismatchError, "another language model"),
        (lambda: rotate_vision(root / "vision-packed", root / "rotated", "", tmp_path), UnsupportedError, "already"),
        (lambda: attach_vision(model, tmp_path, ""), DfqError, ""),
        (lambda: compose(model, replace(parts.config, image_token=VOCAB)), InputError, "not in the vocabulary"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message or None) as caught:
            call()
        assert "\n" not in str(caught.value)
    damaged = tmp_path / "vision"
    damaged.mkdir()
    (damaged / CONFIG).write_text((root / "vision" / CONFIG).read_text())
    content = (root / "vision" / "vision.safetensors").read_bytes()
    (damaged / "vision.safetensors").write_bytes(content[:-50])
    with pytest.raises(InputError, match="truncated"):
        attach_vision(model, damaged, "")
