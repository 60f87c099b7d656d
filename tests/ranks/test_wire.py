from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dfrot.ranks.wire import decode, encode


def test_values_arrive_as_they_were_sent() -> None:
    value: dict[Any, Any] = {
        "numbers": [1, -2.5, 1e-300, math.inf, 0.1 + 0.2, True, None],
        "text": 'ü "quoted" {tensor}',
        "tensor": {"tensor": 3, "dict": [4]},
        3: [torch.arange(5, dtype=torch.uint8), torch.zeros(0, 7), torch.tensor(2.0, dtype=torch.bfloat16)],
        "strided": torch.arange(12.0, dtype=torch.float64).view(3, 4).T,
        "scales": torch.ones(3).to(torch.float8_e4m3fn),
    }
    received = decode(encode(value))
    assert list(received) == list(value)
    for key in ("numbers", "text", "tensor"):
        assert received[key] == value[key]
    for tensor, expected in zip([*received[3], received["strided"]], [*value[3], value["strided"]]):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert received["scales"].dtype == torch.float8_e4m3fn
    assert torch.equal(received["scales"].float(), torch.ones(3))


@pytest.mark.parametrize("value", [{1, 2}, object(), {"deep": [b"bytes"]}])
def test_other_values_do_not_travel(value: object) -> None:
    with pytest.raises(TypeError, match="does not travel"):
        encode(value)
