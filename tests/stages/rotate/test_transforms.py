"""`dfq rotate --transform` and `--align`: the same model, recorded, resumable, refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.fuse import Fuser
from dfrot.rotation.transforms import TRANSFORMS_FILE, Transforms
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import plan, rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.transforms import TRANSFORMS

Make = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
Logits = Callable[[Path], torch.Tensor]
BESIDE_ROTATIONS = [name for name in TRANSFORMS if name != "norm-scale"]
TOKENS = torch.arange(40).reshape(1, 40) * 5


def settings(text: str, *names: str, **changes: Any) -> RotateSettings:
    return RotateSettings("hadamard", text, seqlen=48, transform=names, transform_windows=2, **changes)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_every_transform_keeps_the_model(
    make: Make, text: str, tmp_path: Path, logits: Logits, model_type: str
) -> None:
    model, out = make(dtype=torch.float32, model_type=model_type), tmp_path / "out"
    record = rotate(model, out, settings(text, *reversed(BESIDE_ROTATIONS)))
    assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)
    assert set(record["transforms"]) == set(BESIDE_ROTATIONS)
    for report in record["transforms"].values():
        assert len(report["layers"]) == 3
    assert all(layer["energy"] < 1 for layer in record["transforms"]["up-down"]["layers"])
    assert Checkpoint.open(out).config["attention_bias"] is True
    assert Transforms.load(out / TRANSFORMS_FILE).value_shift is not None
    assert record["gate"]["logits"]["relative_error"] < 1e-3


@pytest.mark.parametrize("name", BESIDE_ROTATIONS)
def test_each_mode_keeps_the_model(make: Make, text: str, tmp_path: Path, logits: Logits, name: str) -> None:
    model = make(dtype=torch.float32)
    for mode in TRANSFORMS[name].modes:
        out = tmp_path / mode
        record = rotate(model, out, settings(text, f"{name}:{mode}"))
        assert record["transforms"][name]["mode"] == mode
        assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)
        changed, plain = Checkpoint.open(out), tmp_path / "plain"
        if not plain.exists():
            rotate(model, plain, settings(text))
        base = Checkpoint.open(plain)
        assert any(
            entry not in base.entries or not torch.equal(changed.read(entry), base.read(entry))
            for entry in changed.entries
        )


def test_an_interrupted_run_ends_in_the_same_bytes(
    make: Make, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    model, wanted = make(), settings(text, "up-down", "head-whiten")
    rotate(model, tmp_path / "straight", wanted)
    write = Fuser.write

    def stop(self: Fuser, name: str, writer: Any) -> None:
        if name.startswith("model.layers.1."):
            raise KeyboardInterrupt
        write(self, name, writer)

    monkeypatch.setattr(Fuser, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        rotate(model, tmp_path / "out", wanted)
    monkeypatch.setattr(Fuser, "write", write)
    monkeypatch.setattr("dfrot.stages.rotate.make_transforms.visit_blocks", None)  # not computed again
    rotate(model, tmp_path / "out", wanted)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_without_transforms_nothing_is_added(make: Make, text: str, tmp_path: Path) -> None:
    record = rotate(make(), tmp_path / "out", settings(text, "none", align=False))
    assert "transforms" not in record
    assert not (tmp_path / "out" / TRANSFORMS_FILE).exists()


def test_refusals(make: Make, text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"mistral: values cannot be centred.*leave `transform=head-center` out"):
        plan(make("mistral", model_type="mistral"), settings(text, "head-center"))
    with pytest.raises(InputError, match="up-down is given twice"):
        plan(make("llama"), settings(text, "up-down", "up-down:max"))
    with pytest.raises(InputError, match="unknown; choose of"):
        plan(tmp_path / "llama", settings(text, "sideways"))
    with pytest.raises(InputError, match="needs a `dataset`"):
        RotateSettings("hadamard", None, transform=("up-down",))
    with pytest.raises(InputError, match="`method` other than none"):
        RotateSettings("none", text, transform=("up-down",))
    with pytest.raises(InputError, match="norm-scale tells channels apart that R1 mixes; take `method=smooth`"):
        plan(tmp_path / "llama", settings(text, "norm-scale"))
    with pytest.raises(InputError, match="`align` needs a `method` that rotates"):
        RotateSettings("smooth", text, align=True)
    with pytest.raises(InputError, match='`method="smooth"` needs a `dataset`'):
        RotateSettings("smooth", None)


def test_the_plan_names_them(make: Make, text: str) -> None:
    summary = plan(make(), settings(text, "key-scale", "up-down"))
    assert summary["transforms"] == ["up-down:rms", "key-scale:product"]
    json.dumps(summary)


@pytest.mark.parametrize("method", ["hadamard", "dfrot"])
def test_an_aligned_rotation_keeps_the_model(
    make: Make, text: str, tmp_path: Path, logits: Logits, method: str
) -> None:
    model, out = make(dtype=torch.float32), tmp_path / "out"
    record = rotate(model, out, RotateSettings(method, text, seqlen=64, rounds=2, align=True))
    assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)
    assert 0 < record["align"]["mean"] < 1
    assert 0.5 < record["align"]["constant"] <= 1
    assert ("refinement" in record) == (method == "dfrot")
    signs = Transforms.load(out / TRANSFORMS_FILE).norm
    assert signs is not None
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(Checkpoint.open(out).read("model.layers.1.post_attention_layernorm.weight"), signs[1, 1].float())


def test_align_and_transforms_share_a_file(make: Make, text: str, tmp_path: Path, logits: Logits) -> None:
    model, out = make(dtype=torch.float32), tmp_path / "out"
    rotate(model, out, settings(text, "up-down", align=True))
    stored = Transforms.load(out / TRANSFORMS_FILE)
    assert stored.norm is not None
    assert stored.up is not None
    assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)


def test_align_is_refused_where_nothing_absorbs_it(make: Make, text: str) -> None:
    with pytest.raises(InputError, match="`align` is for asymmetric activations"):
        RotateSettings("hadamard", text, align=True, a_sym=True)
    with pytest.raises(InputError, match="`align` needs a `dataset`"):
        RotateSettings("hadamard", None, align=True)
    with pytest.raises(UnsupportedError, match=r"R1 cannot be fused.*leave `align` out"):
        plan(make(model_type="olmo2"), RotateSettings("hadamard", text, align=True))


def test_the_packed_model_equals_its_simulation(make: Make, text: str, tmp_path: Path, logits: Logits) -> None:
    """Gains of either sign, biases that were not there before: the native decoder takes them."""
    model, rotated = make(dtype=torch.float32), tmp_path / "rotated"
    rotate(model, rotated, settings(text, *BESIDE_ROTATIONS, align=True))
    scheme, outputs = QuantScheme.parse("w4a4kv4"), []
    for fake in (False, True):
        out = tmp_path / f"quantized-{fake}"
        quantize(rotated, None, out, QuantizeSettings(scheme, algorithm="rtn", fake=fake, sink_tokens=0))
        loaded = load_model(out)
        with torch.no_grad():
            outputs.append(loaded(TOKENS).logits)
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs[0], logits(model), rtol=1e-2, atol=1e-2)
