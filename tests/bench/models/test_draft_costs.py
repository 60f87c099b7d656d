"""What follows from measured costs of drafting."""

from __future__ import annotations

import pytest

from dfrot.bench.models.draft_costs import best_speedups, break_even_lengths

COMMAND = ["bench", "draft", "--shape", "tiny", "--rows", "1,3", "--repeats", "2", "--prompt", "16"]


def test_what_follows_from_costs() -> None:
    verify, draft = {1: 1.0, 2: 1.0, 4: 2.0}, {1: 0.5, 2: 1.0, 4: 2.0}
    assert break_even_lengths(1.0, verify, draft) == {1: 1.5, 2: 2.5, 4: 4.5}
    speedups = best_speedups(1.0, verify, draft)
    assert speedups["0.9"]["guesses"] == 1
    assert speedups["0.9"]["speedup"] == pytest.approx(1.9 / 1.5)
    free = best_speedups(1.0, dict.fromkeys((1, 2, 8), 1.0), dict.fromkeys((1, 2, 4), 0.0))
    assert free["0.5"]["guesses"] == 4
