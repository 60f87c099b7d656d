"""Plain-torch reference of products with 4-bit weights and integer activations."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops.packing.reference import signed_codes


def w4a8_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    """int8 activations [M, K] times 4-bit weights: exact integer sums per group, float32 [M, N] result.

    y[m, n] = x_scale[m] * sum_g scale[n, g] * sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n, g]).
    """
    k = q.shape[1]
    weight = signed_codes(packed, zero, 4, k, group).double()
    rows = q.double() - x_zero.double()[:, None]
    step = group or max(k, 1)
    out = torch.zeros(q.shape[0], packed.shape[0], dtype=torch.float32, device=q.device)
    for index, begin in enumerate(range(0, k, step)):
        # float64 sums of small integers are exact: a fast stand-in for an int32 matmul
        total = rows[:, begin : begin + step] @ weight[:, begin : begin + step].T
        out += total.float() * scale[:, index].float()[None, :]
    return out * x_scale[:, None]
