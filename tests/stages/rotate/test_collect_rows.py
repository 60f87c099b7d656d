"""Rows for the refinement: what they are, that sampling keeps every massive row and stays unbiased."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe, open_described
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.collect_rows import collect_rows

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
}
SPECIAL = 7  # the token whose embedding is massive


@pytest.fixture
def runner(tmp_path: Path) -> BlockRunner:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shapes = describe(CONFIG).tensors()
    writer = SafetensorsWriter(tmp_path, [TensorPlan(key, torch.float32, shape) for key, shape in shapes.items()])
    draw = torch.Generator().manual_seed(0)
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=draw) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        if "norm" in key:
            value += 1.0
        if "embed" in key:
            value *= 5.0
            value[SPECIAL, 3] = 500.0
        writer.write(key, value)
    return BlockRunner(*open_described(tmp_path))


@pytest.fixture
def tokens() -> Tensor:
    found = torch.randint(8, 64, (1, 120), generator=torch.Generator().manual_seed(1))
    found[0, [0, 50]] = SPECIAL
    return found


def test_rows_are_norm_outputs_without_gain(runner: BlockRunner, tokens: Tensor) -> None:
    features = collect_rows(runner, tokens, max_rows=10_000)
    assert features.taps == tuple(
        f"model.layers.{i}.{name}" for i in range(2) for name in ("input_layernorm", "post_attention_layernorm")
    )
    assert features.total == len(features.rows) == 4 * 120
    hidden = runner.embed(tokens)
    assert torch.equal(features.token, tokens[0].repeat(4))
    for layer in range(2):
        block = runner.block(layer)
        gain = block.get_submodule("input_layernorm").weight
        expected = block.get_submodule("input_layernorm")(hidden)[0] / gain  # transformers' own norm, eps included
        torch.testing.assert_close(features.rows[features.tap == 2 * layer], expected, rtol=1e-5, atol=1e-5)
        hidden = runner.run(block, hidden)


def test_massive_rows_are_found_and_reported(runner: BlockRunner, tokens: Tensor) -> None:
    report = collect_rows(runner, tokens).report(lambda token: f"<{token}>")
    assert report["massive"] == 8
    assert report["share"] == pytest.approx(8 / 480)
    assert report["positions"] == [0, 50]
    assert report["tokens"] == [{"id": SPECIAL, "count": 8, "text": f"<{SPECIAL}>"}]
    assert all(positions == [0, 50] for positions in report["taps"].values())
    json.dumps(report)


def test_sampling_keeps_massive_rows_and_total_weight(runner: BlockRunner, tokens: Tensor) -> None:
    whole = collect_rows(runner, tokens)
    part = collect_rows(runner, tokens, max_rows=80, seed=3)
    assert part.n_massive == whole.n_massive == 8
    assert int((~part.massive).sum()) == 80
    assert float(part.weight.double().sum()) == pytest.approx(480, rel=1e-6)
    assert bool((part.weight[part.massive] == 1).all())
    again = collect_rows(runner, tokens, max_rows=80, seed=3)
    assert torch.equal(part.rows, again.rows)
    assert torch.equal(part.position, again.position)


def test_weighted_sums_are_unbiased(runner: BlockRunner, tokens: Tensor) -> None:
    whole = collect_rows(runner, tokens)
    exact = whole.rows.double().T @ whole.rows.double()
    parts = [collect_rows(runner, tokens, max_rows=80, seed=seed) for seed in range(25)]
    sums = [(p.rows.double() * p.weight.double()[:, None]).T @ p.rows.double() for p in parts]
    single = torch.stack([(s - exact).norm() / exact.norm() for s in sums]).mean()
    mean = (torch.stack(sums).mean(0) - exact).norm() / exact.norm()
    assert float(mean) < 0.4 * float(single)  # errors average out: 1/5 in expectation for 25 independent samples


def test_a_rule_that_marks_everything_is_refused(runner: BlockRunner, tokens: Tensor) -> None:
    with pytest.raises(InputError, match="choose another `massive_rule`"):
        collect_rows(runner, tokens, max_rows=80, rule=MassiveRule("energy", 0.01))


@pytest.mark.parametrize("shape", [(2, 10), (10,), (1, 0)])
def test_one_sequence_is_needed(runner: BlockRunner, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one sequence"):
        collect_rows(runner, torch.zeros(shape, dtype=torch.long))
