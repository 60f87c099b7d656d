"""Norm outputs for the refinement of R1: what they are, how many, and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.arch import open_described
from dfrot.calib.taps import inner_linear
from dfrot.rotation.refinement.output_error import NormOutputs
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate import collect_outputs as module
from dfrot.stages.rotate.collect_outputs import collect_outputs

Make = Callable[..., Path]


MIXTURE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.fixture(params=[{}, {"model_type": "phi3", "pad_token_id": 0}, MIXTURE], ids=["llama", "phi3", "qwen3_moe"])
def runner(request: pytest.FixtureRequest, make: Make) -> BlockRunner:
    return BlockRunner(*open_described(make(**request.param)))


def collected(runner: BlockRunner, windows: int = 2, length: int = 24) -> list[NormOutputs]:
    ids = torch.randint(0, runner.arch.vocab_size, (windows, length), generator=torch.Generator().manual_seed(0))
    return collect_outputs(runner, ids, seed=0)


def test_rows_have_the_norm_of_rms_outputs_and_readers_are_the_linears_behind(runner: BlockRunner) -> None:
    taps, arch = collected(runner), runner.arch
    norms = arch.spec.rotated_norms
    assert len(taps) == arch.n_layers * len(norms)
    errors = torch.randn(5, arch.hidden, generator=torch.Generator().manual_seed(1))
    for number, tap in enumerate(taps):
        assert tap.rows.shape == (2 * 24, arch.hidden)
        size = tap.rows.float().square().mean(1)
        assert bool(((size > 0.5) & (size < 1.01)).all())
        layer, index = divmod(number, len(norms))
        block, norm = runner.block(layer), norms[index]
        gain = block.get_submodule(norm.name).weight + norm.offset
        outputs = [errors * gain @ inner_linear(block, name).weight.T for name in norm.feeds]
        expected = sum(out.square().sum(1) for out in outputs)
        torch.testing.assert_close((errors @ tap.readers.T).square().sum(1), expected, rtol=1e-4, atol=1e-9)


def test_a_budget_keeps_equal_shares_of_every_window(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = BlockRunner(*open_described(make()))
    whole = collected(runner)
    monkeypatch.setattr(module, "ROW_BYTES", 2 * runner.arch.hidden * len(whole) * 2 * 10)
    for all_rows, tap in zip(whole, collected(runner)):
        assert tap.rows.shape == (2 * 10, runner.arch.hidden)
        for part, window in zip(tap.rows.split(10), all_rows.rows.split(24)):
            kept = [bool((window == row).all(1).any()) for row in part]
            assert all(kept)
