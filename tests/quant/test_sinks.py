"""Which rows of a call are sinks."""

from __future__ import annotations

import torch

from dfrot.quant.sinks import Sinks


def test_which_rows_are_sinks() -> None:
    sinks = Sinks(3)
    sinks.begin(2, 4, 0, None)
    assert sinks.rows is not None
    assert sinks.rows.tolist() == [0, 1, 2, 4, 5, 6]
    sinks.begin(2, 4, 2, None)
    assert sinks.rows.tolist() == [0, 4]
    sinks.begin(2, 1, 3, None)
    assert sinks.rows is None
    sinks.begin(2, 4, 0, torch.tensor([0, 2]))
    assert sinks.rows is not None
    assert sinks.rows.tolist() == [0, 1, 2, 6, 7]
    sinks.begin(2, 1, 4, torch.tensor([0, 2]))
    assert sinks.rows is not None
    assert sinks.rows.tolist() == [1]
