"""The whole way for architectures of another build (constants, fused linears): rotated behind the gate, packed,
measured, exported, loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch.gguf import GGUF_ARCHS
from dfrot.data.text import load_text
from dfrot.errors import InputError, UnsupportedError
from dfrot.evaluate.ppl import window_losses
from dfrot.evaluate.tokens import WindowReader
from dfrot.export import engines
from dfrot.export.check import compare, quantize_by_rounding
from dfrot.export.run import export
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

GRANITE = {
    "model_type": "granite",
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.125,
    "logits_scaling": 0.5,
}


PHI3 = {"model_type": "phi3", "pad_token_id": None}
GEMMA = {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24, "pad_token_id": None}
GEMMA2 = {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}
GEMMA3 = {"model_type": "gemma3_text", **GEMMA, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("config", [GRANITE, PHI3, GEMMA2, GEMMA3], ids=lambda config: config["model_type"])
def test_from_weights_to_engines(config: dict[str, Any], kit: Any, engine: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the thin thing in the inn, then the other thing\n" * 400)
    model = kit.build(tmp_path / "model", dtype=torch.float32, torch_dtype="float32", **config)
    settings = RotateSettings(method="hadamard", dataset=str(text), seqlen=64, online=False)
    evidence = rotate(model, tmp_path / "rotated", settings)
    assert evidence["gate"]["logits"]["relative_error"] < 1e-4
    windows = WindowReader(load_text(str(text), "test"), 48, 2).read(model).windows
    whole = load_model(model)
    for folder in (model, tmp_path / "rotated"):
        found = window_losses(load_model(folder), windows)
        own = list(engines.window_losses(engines.transformers_logits(whole), windows))  # transformers' own logits
        assert torch.allclose(found, torch.stack([loss for loss, _ in own]), rtol=1e-4)
    integers = quantize_by_rounding(tmp_path / "rotated", QuantScheme.parse("w4a16-g32"), tmp_path / "packed")
    ours = list(engines.window_losses(engines.transformers_logits(load_model(integers)), windows))
    for target in engines.ENGINES if config["model_type"] in GGUF_ARCHS else set(engines.ENGINES) - {"gguf"}:
        export(integers, target, tmp_path / target)
        theirs = compare(ours, list(engines.window_losses(engine(target, tmp_path / target), windows)))
        assert theirs["match"], target
        assert theirs["logits"] < (0.03 if target == "gguf" else 1e-4), target


@pytest.mark.parametrize("target", engines.ENGINES)
def test_a_tied_head_and_biases(
    target: str, kit: Any, own: Any, engine: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    """Never rotated, so never untied: the embedding is the head in every format, biases are taken along."""
    model = kit.build(tmp_path / "model", bias=kit.qkv, model_type="qwen2", tie_word_embeddings=True)
    integers = quantize_by_rounding(model, QuantScheme.parse("w4a16-g32"), tmp_path / "packed")
    export(integers, target, tmp_path / "out")
    theirs = engine(target, tmp_path / "out")(ids)
    assert kit.difference(own(integers), theirs) < (0.03 if target == "gguf" else 1e-4)


@pytest.mark.parametrize("value", ["x", 0, float("inf"), True, None])
def test_a_constant_that_is_no_number_is_refused(value: Any, kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", **{**GRANITE, "residual_multiplier": value})
    with pytest.raises(InputError, match="residual_multiplier"):
        export(model, "gguf", tmp_path / "out")


def test_an_architecture_without_gguf_names_is_refused(kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", model_type="gemma2")
    with pytest.raises(UnsupportedError, match="gemma2 is not described"):
        export(model, "gguf", tmp_path / "out")
