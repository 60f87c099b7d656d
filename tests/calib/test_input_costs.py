"""Costs of rounding inputs, against what rounding them does to the predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe, open_described
from dfrot.calib.input_costs import cost_windows, input_costs
from dfrot.calib.simulate import quantize_activations
from dfrot.files import read_json, write_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.rotation.online import OnlineRotations
from dfrot.runtime.block_runner import BlockRunner

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
SCHEMES = [QuantScheme.parse("w16a6"), replace(QuantScheme.parse("w16a4-sym"), a_clip=0.9)]
SINKS = 2


def runner_of(folder: Path, kind: str, online: bool) -> BlockRunner:
    """A random model whose predictions are neither uniform nor certain; online: with R4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            parameter.normal_(0, 0.2 if len(parameter) == SIZES["vocab_size"] else parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    if online:
        config = read_json(folder / "config.json")
        entry = DfqConfig(online=OnlineRotations(None, hadamard_plan(describe(config).intermediate)))
        write_json(folder / "config.json", {**config, "quantization_config": entry.to_dict()})
    return BlockRunner(*open_described(folder))


def tokens(count: int = 12, seqlen: int = 48) -> Tensor:
    return torch.randint(0, 256, (count, seqlen), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def divergence(runner: BlockRunner, windows: Tensor, layer: int, name: str, scheme: QuantScheme) -> float:
    """KL per token between the model and the one that rounds the input `name` of a layer."""
    exact = rounded = runner.embed(windows)
    for number in range(runner.arch.n_layers):
        block = runner.block(number)
        exact = runner.run(block, exact)
        if number == layer:
            tap = next(tap for tap in runner.arch.taps() if tap.name == name)
            quantize_activations(block, tap, [linear.name for linear in tap.linears], scheme, SINKS)
        rounded = runner.run(block, rounded)
    expected, actual = (runner.logits(hidden).double().log_softmax(-1) for hidden in (exact, rounded))
    return float((expected.exp() * (expected - actual)).sum(-1).mean())


@pytest.mark.parametrize(("kind", "online"), [("llama", True), ("gemma2", False), ("qwen3", True)])
def test_they_are_the_divergence_to_second_order(tmp_path: Path, kind: str, online: bool) -> None:
    runner = runner_of(tmp_path / "model", kind, online)
    windows = tokens()
    costs = input_costs(runner, windows, tmp_path, lambda layer, tap: SCHEMES, SINKS)
    assert len(costs) == runner.arch.n_layers
    assert not list(tmp_path.glob("*.safetensors"))
    predicted, measured = [], []
    for layer in (0, runner.arch.n_layers - 1):
        for name, by_scheme in costs[layer].items():
            predicted += by_scheme
            measured += [divergence(runner, windows, layer, name, scheme) for scheme in SCHEMES]
    assert predicted == pytest.approx(measured, rel=0.35)  # one draw per position
    assert sum(predicted) == pytest.approx(sum(measured), rel=0.15)


def test_they_repeat(tmp_path: Path) -> None:
    runner = runner_of(tmp_path / "model", "llama", online=True)
    first, second = (input_costs(runner, tokens(2), tmp_path, lambda layer, tap: SCHEMES) for _ in range(2))
    assert first == second


def test_the_first_windows_are_enough() -> None:
    assert cost_windows(torch.zeros(64, 1024)).shape == (4, 1024)
    assert cost_windows(torch.zeros(3, 8192)).shape == (1, 8192)
    assert cost_windows(torch.zeros(3, 8)).shape == (3, 8)
