"""Generated rows carry the published values."""

from __future__ import annotations

import pytest
import torch

from dfrot.bench.refinement.synthetic_rows import (
    CHANNELS,
    DELIMITER,
    START_TOKEN,
    massive_rows,
)

# one draw of 64 rows; the largest |x| of a row moves the error, most for heavy tails and for one fixed direction
TOLERANCE = 0.016


def test_massive_rows_carry_the_published_values() -> None:
    rows = massive_rows(4)
    for row, values in ((0, START_TOKEN), (1, DELIMITER)):
        values_at_channels = rows[row, list(CHANNELS)]
        assert float(values_at_channels[1] / values_at_channels[0]) == pytest.approx(values[1] / values[0], rel=1e-5)
        assert float(rows[row].abs().max() / rows[row].abs().median()) > 1000
    assert torch.equal(massive_rows(4, seed=1)[0], rows[0])  # the start token is the same in every text
    assert not torch.equal(massive_rows(4, seed=1)[1], rows[1])
