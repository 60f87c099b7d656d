"""Passes over chunks of samples that wait for one another at every input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dfrot.quant.rounding import gptq
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

Build = Callable[..., Path]


def settings(scheme: str = "w4a4kv4", **changes: Any) -> QuantizeSettings:
    return QuantizeSettings(QuantScheme.parse(scheme), **changes)


@pytest.mark.parametrize("scheme", ["w4a4kv4", "w4a16"])
def test_waiting_passes_and_repeated_ones_end_in_the_same_bytes(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    how = settings(scheme, keep=("lm_head", "model.layers.0.*", "model.layers.1.mlp.*"), sink_tokens=2)
    run, calls = BlockRunner.run, [0]

    def counted(*args: Any) -> Tensor:
        calls[0] += 1
        return run(*args)

    monkeypatch.setattr(BlockRunner, "run", counted)
    quantize(model, cal, tmp_path / "waiting", how)
    waiting, calls[0] = calls[0], 0
    quantize(model, cal, tmp_path / "repeated", replace(how, memory=1e-9))
    samples, streams = 4, 3 if scheme == "w4a4kv4" else 2  # the quantized and the unquantized model, means of keys
    assert waiting == 3 * samples * streams  # every block once per sample and stream
    assert calls[0] > waiting
    for file in sorted((tmp_path / "waiting").iterdir()):
        assert file.read_bytes() == (tmp_path / "repeated" / file.name).read_bytes(), file.name


def test_an_error_in_the_middle_of_waiting_passes_is_raised(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    before = threading.active_count()
    factor = gptq.factor
    calls = [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return factor(*args)

    monkeypatch.setattr(gptq, "factor", failing)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, cal, tmp_path / "q", settings())
    assert threading.active_count() == before  # no pass waits any longer
    assert not (tmp_path / "q").exists()
