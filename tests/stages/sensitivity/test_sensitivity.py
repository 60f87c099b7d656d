"""dfq eval sensitivity: a variant is the simulated checkpoint that rounds the same parts, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from dfrot.arch import open_described
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import MismatchError, UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.sensitivity.figure import sensitivity_figure
from dfrot.stages.sensitivity.predictions import Positions
from dfrot.stages.sensitivity.run import sensitivity
from dfrot.stages.sensitivity.settings import SensitivitySettings
from dfrot.stages.sensitivity.variants import LAYERS, TOKEN_CLASSES, all_variants

SIZES: dict[str, Any] = {"seqlen": 24, "windows": 3, "positions": 0}


def by_part(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Variants of all layers by what they round."""
    return {variant["part"]: variant for variant in result["variants"] if variant["layer"] is None}


@pytest.mark.parametrize(
    ("part", "scheme"),
    [
        ("everything", "w4a4kv4"),
        ("weights", "w4a16"),
        ("activations", "w16a4"),
        ("KV cache", "w16a16kv4"),
    ],
)
@pytest.mark.parametrize("online", [False, True])
def test_totals_are_those_of_simulated_checkpoints(
    build: Any, text: Path, tmp_path: Path, part: str, scheme: str, online: bool
) -> None:
    model = build(tmp_path / "model", "qwen2", online=online, dtype=torch.float32)
    report = sensitivity(model, SensitivitySettings(dataset=str(text), layers="none", **SIZES))
    (result,) = report["results"]
    simulated = tmp_path / "simulated"
    parsed = QuantScheme.parse(scheme)  # the sweep takes whole ranges and no sinks
    settings = QuantizeSettings(scheme=parsed, algorithm="rtn", fake=True, a_clip=1.0, sink_tokens=0)
    quantize(model, None, simulated, settings)
    measure = PerplexitySettings(dataset=str(text), seqlen=24, windows=3, dtype="float32", kl=True)
    base, other = evaluate([model, simulated], measure)["results"]
    assert result["perplexity"] == pytest.approx(base["perplexity"], rel=1e-5)
    variant = by_part(result)[part]
    assert variant["perplexity"] == pytest.approx(other["perplexity"], rel=2e-3)
    assert variant["kl"] == pytest.approx(other["kl"], rel=0.02)
    assert variant["kl"] > 1e-3


def test_one_layer_of_a_model_with_one_layer_is_the_whole(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(tmp_path / "model", num_hidden_layers=1, dtype=torch.float32)
    (result,) = sensitivity(model, SensitivitySettings(dataset=str(text), **SIZES))["results"]
    layers = {variant["part"]: variant for variant in result["variants"] if variant["group"] == LAYERS}
    parts = by_part(result)
    for part in ("weights", "activations", "keys", "values"):
        assert layers[part]["kl"] == parts[part]["kl"] > 0


def test_layers_above_see_what_a_rounded_layer_did(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(tmp_path / "model", dtype=torch.float32)
    (result,) = sensitivity(model, SensitivitySettings(dataset=str(text), **SIZES))["results"]
    layers = [variant["kl"] for variant in result["variants"] if variant["group"] == LAYERS]
    assert len(layers) == 4 * 3
    assert len(set(layers)) == len(layers)
    assert min(layers) > 0


def test_inputs_of_one_layer(build: Any, text: Path, tmp_path: Path) -> None:
    """The input of q, k and v of the only layer is that input in all layers."""
    model = build(tmp_path / "model", num_hidden_layers=1, dtype=torch.float32)
    (result,) = sensitivity(model, SensitivitySettings(dataset=str(text), layers="inputs", **SIZES))["results"]
    layers = {variant["part"]: variant["kl"] for variant in result["variants"] if variant["group"] == LAYERS}
    parts = by_part(result)
    assert "activations" not in layers
    for tap in ("q/k/v", "o", "gate/up", "down"):
        assert layers[f"input of {tap}"] == parts[f"input of {tap}"]["kl"] > 0


def test_classes_of_tokens_partition_the_text(build: Any, text: Path, tmp_path: Path) -> None:
    """Without massive tokens, rounding them changes nothing; what the first token costs is no share of the others'."""
    model = build(tmp_path / "model", dtype=torch.float32)
    (result,) = sensitivity(model, SensitivitySettings(dataset=str(text), layers="none", **SIZES))["results"]
    assert result["tokens"] == {"first token": 3, "massive tokens": 0, "common tokens": 3 * 23}
    parts = by_part(result)
    for kind in ("activations", "KV cache"):
        assert parts[f"{kind} of massive tokens"]["kl"] == 0
        assert parts[f"{kind} of first token"]["kl"] > 0
        assert parts[f"{kind} of common tokens"]["kl"] > parts[f"{kind} of first token"]["kl"]
    # a rule that calls every token massive leaves no common ones
    every = SensitivitySettings(dataset=str(text), layers="none", massive_rule="energy:0.0001", **SIZES)
    (result,) = sensitivity(model, every)["results"]
    assert by_part(result)["activations of common tokens"]["kl"] == 0
    assert result["tokens"]["massive tokens"] == 3 * 23


def rewrite(folder: Path, changes: dict[str, torch.Tensor]) -> None:
    checkpoint = Checkpoint.open(folder)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.entries} | changes
    (folder / "model.safetensors").unlink()
    writer = SafetensorsWriter(
        folder, [TensorPlan(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    )
    for name, value in tensors.items():
        writer.write(name, value)


def test_a_large_key_bias_is_named_as_the_cause(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(tmp_path / "model", "qwen2", dtype=torch.float32)
    bias = torch.zeros(16)
    bias[::8] = 60.0
    rewrite(model, {f"model.layers.{layer}.self_attn.k_proj.bias": bias for layer in range(3)})
    (result,) = sensitivity(model, SensitivitySettings(dataset=str(text), layers="none", **SIZES))["results"]
    parts = by_part(result)
    assert parts["keys"]["kl"] > 20 * parts["keys, their bias exact"]["kl"] > 0
    without = build(tmp_path / "llama", dtype=torch.float32)
    (result,) = sensitivity(without, SensitivitySettings(dataset=str(text), layers="none", **SIZES))["results"]
    assert "keys, their bias exact" not in by_part(result)


def test_a_rotated_checkpoint_is_measured_beside_its_source(build: Any, text: Path, tmp_path: Path) -> None:
    model, rotated = build(tmp_path / "model", dtype=torch.float32), tmp_path / "rotated"
    rotate(model, rotated, RotateSettings(method="hadamard", dataset=str(text)))
    settings = SensitivitySettings(dataset=str(text), layers="none", **SIZES)
    report = sensitivity(model, settings, rotated=rotated)
    source, other = report["results"]
    assert (source["rotated"], other["rotated"]) == (False, True)
    assert other["perplexity"] == pytest.approx(source["perplexity"], rel=1e-3)
    assert by_part(source).keys() == by_part(other).keys()
    assert source["tokens"] == other["tokens"]  # classes are those of the unrotated model
    (alone,) = sensitivity(rotated, settings)["results"]
    assert alone["tokens"] is None
    assert not [part for part in by_part(alone) if any(part.endswith(kind) for kind in TOKEN_CLASSES)]
    with pytest.raises(MismatchError, match="3 layers of width 32, the model has 2"):
        sensitivity(build(tmp_path / "small", num_hidden_layers=2), settings, rotated=rotated)


def test_parts_follow_the_scheme(build: Any, tmp_path: Path) -> None:
    _, arch = open_described(build(tmp_path / "model"))

    def parts(scheme: str) -> list[str]:
        variants = all_variants(arch, QuantScheme.parse(scheme), layers="parts", classes=True, key_bias=False)
        return list(dict.fromkeys(variant.label for variant in variants))

    assert parts("w4a16") == [
        "weights",
        *(f"weight of {tap}" for tap in ("q/k/v", "o", "gate/up", "down")),
        "embedding",
        "weight of the head",
    ]
    assert "everything" not in parts("w16a16kv4")
    assert {"KV cache", "keys", "values"} <= set(parts("w16a16kv4"))
    assert len(parts("w4a4kv4")) == 4 + 4 + 4 + 2 + 3 + 6


def test_a_mixture_of_experts(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(
        tmp_path / "model", "mixtral", num_local_experts=4, num_experts_per_tok=2, head_dim=8, dtype=torch.float32
    )
    settings = SensitivitySettings(dataset=str(text), layers="none", **SIZES)
    parts = by_part(sensitivity(model, settings)["results"][0])
    names = [part for part in parts if part.startswith("input of")]
    assert len(names) == 5
    assert all(parts[name]["kl"] > 0 for name in names)


def test_positions_are_spread_over_windows() -> None:
    tokens = torch.arange(30).view(2, 15)
    positions = Positions.of(tokens, 6)
    assert positions.index.tolist() == [0, 6, 13] * 2
    assert positions.target.tolist() == [1, 7, 14, 16, 22, 29]
    assert positions.by_window(torch.tensor([1.0, 2, 3, 5, 5, 5])).tolist() == [2, 5]
    assert len(Positions.of(tokens, 0).target) == 28


def test_what_cannot_be_measured_is_refused(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(tmp_path / "model")
    quantize(model, None, tmp_path / "packed", QuantizeSettings(algorithm="rtn"))
    with pytest.raises(UnsupportedError, match="is quantized already; give the 16-bit checkpoint"):
        sensitivity(tmp_path / "packed", SensitivitySettings(dataset=str(text), **SIZES))
    with pytest.raises(UnsupportedError, match="leaves everything in 16 bits"):
        SensitivitySettings(scheme=QuantScheme.parse("w16a16"))


def test_the_picture_holds_every_part(build: Any, text: Path, tmp_path: Path) -> None:
    model = build(tmp_path / "model", dtype=torch.float32)
    report = sensitivity(model, SensitivitySettings(dataset=str(text), **SIZES))
    picture = sensitivity_figure(json.loads(json.dumps(report)))
    root = ElementTree.fromstring(picture)
    words = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"keys", "input of q/k/v", "weight of the head", "activations", "layer"} <= words
    assert len(list(root)) == 2
