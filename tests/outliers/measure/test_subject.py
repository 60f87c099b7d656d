"""Quantized checkpoints, block by block, against the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.outliers.measure.block_view import BlockCapture, run_and_capture
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import QuantizeSettings, quantize

MakeCheckpoint = Callable[..., Path]


@pytest.mark.parametrize("fake", [False, True])
def test_a_quantized_checkpoint_runs_as_it_would_when_loaded(
    small_llama: MakeCheckpoint, tmp_path: Path, fake: bool
) -> None:
    scheme = QuantScheme.parse("w4a4kv4")
    packed = tmp_path / "packed"
    quantize(small_llama(), None, packed, QuantizeSettings(scheme=scheme, algorithm="rtn", fake=fake))
    subject = Subject(packed)
    assert subject.kind == "w4a4kv4"
    tokens = torch.randint(0, 256, (24,))
    hidden = subject.runner.embed(tokens[None])[0]
    for layer in range(3):
        capture = BlockCapture(layer, 0, tokens, hidden)
        hidden = run_and_capture(subject.runner, subject.block(layer), subject.arch, capture, subject.cache(layer))
    model = load_model(packed, torch.float32, fake=not fake)
    expected = model.base_model(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states
    torch.testing.assert_close(capture.before, expected[2][0], atol=2e-2, rtol=2e-2)
