"""The loss with a streamed head against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.outliers.measure.loss import window_nll
from dfrot.outliers.measure.subject import Subject
from dfrot.runtime.load import load_model

MakeCheckpoint = Callable[..., Path]


def test_streamed_loss_is_the_models(small_llama: MakeCheckpoint) -> None:
    folder = small_llama()
    subject = Subject(folder)
    tokens = torch.randint(0, 256, (30,))
    hidden = subject.runner.embed(tokens[None])
    for layer in range(3):
        hidden = subject.runner.run(subject.block(layer), hidden)
    expected = load_model(folder)(input_ids=tokens[None], labels=tokens[None]).loss
    assert window_nll(subject.runner, hidden[0], tokens) == pytest.approx(float(expected), rel=1e-4)
