"""Text to windows of tokens: the GPTQ protocol."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfrot.data.text import calibration_windows, evaluation_windows
from dfrot.errors import InputError


@given(length=st.integers(2, 200), seqlen=st.integers(2, 50))
def test_windows_are_the_beginning_of_the_text(length: int, seqlen: int) -> None:
    tokens = torch.arange(length)
    if length < seqlen:
        with pytest.raises(InputError, match=rf"{seqlen} tokens needed.*{length} found"):
            evaluation_windows(tokens, seqlen)
        return
    drawn = evaluation_windows(tokens, seqlen)
    assert drawn.shape == (length // seqlen, seqlen)
    assert torch.equal(drawn.flatten(), tokens[: drawn.numel()])
    assert length - drawn.numel() < seqlen


@given(length=st.integers(20, 300), samples=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_calibration_windows_are_contiguous_and_drawn_as_in_the_published_code(
    length: int, samples: int, seed: int
) -> None:
    drawn = calibration_windows(torch.arange(length), samples, seqlen=10, seed=seed)
    random.seed(seed)
    starts = torch.tensor([random.randint(0, length - 10 - 1) for _ in range(samples)])
    assert torch.equal(drawn, starts[:, None] + torch.arange(10))


def test_drawing_leaves_the_global_generator_alone() -> None:
    random.seed(5)
    want = random.random()
    random.seed(5)
    calibration_windows(torch.arange(100), 4, 10, seed=1)
    assert random.random() == want


def test_too_short_for_calibration_names_both_counts() -> None:
    assert calibration_windows(torch.arange(11), 2, 10, seed=0).tolist() == [list(range(10))] * 2
    with pytest.raises(InputError, match="11 tokens needed for `seqlen` 10, 10 found"):
        calibration_windows(torch.arange(10), 2, 10, seed=0)


@pytest.mark.parametrize(
    ("samples", "seqlen", "message"),
    [
        (0, 10, "`samples` 0"),
        (1000, 10, "`samples` 1000: the text has 100 tokens"),
        (1, 1, "`seqlen` 1"),
        (1, -4, "`seqlen` -4"),
    ],
)
def test_senseless_sizes_are_refused(samples: int, seqlen: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_windows(torch.arange(100), samples, seqlen, seed=0)


def test_a_batch_is_not_a_text() -> None:
    with pytest.raises(InputError, match="one row of ids"):
        evaluation_windows(torch.zeros(2, 100, dtype=torch.long), 10)
