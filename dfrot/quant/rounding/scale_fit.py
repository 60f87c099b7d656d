"""Scales by least squares: once the codes of a row stand, the scales with the least output error are a linear system.

A row is w ~ sum over groups g of s_g v_g, v_g its integers in the columns of the group and zero elsewhere. The error
(w - sum s_g v_g) H (...)^T is least where A s = b, A_gh = v_g H v_h^T and b_g = v_g H w^T.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dfrot.matrix_stacks import solutions
from dfrot.quant.rounding.grid import Grid
from dfrot.quant.rounding.hessian_error import damped, output_errors

ELEMENTS = 1 << 23  # of the products of codes and Hessian in memory at a time
RIDGE = 1e-6  # share of the mean diagonal of A that is added: groups without codes have rows of zeros


def fitted_scales(
    weight: Tensor, hessian: Tensor, added: float, grid: Grid, codes: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales bfloat16 [N, G] for codes uint8 [N, K], and each row's output error float64 [N].

    weight: float32 [N, K]. hessian: float32 [K, K]. added: what GPTQ added to its diagonal. error: float64 [N], with
    the scales of `grid`, which a row keeps where rounding to bfloat16 makes the new ones worse."""
    size, group = weight.shape[1], grid.group or weight.shape[1]
    slices = [slice(begin, min(begin + group, size)) for begin in range(0, size, group)]
    columns = torch.arange(size)
    scales, height = [], max(1, ELEMENTS // (len(slices) * size))
    for begin in range(0, len(weight), height):
        rows = grid.rows(begin, begin + height)
        integers = codes[begin : begin + height].float() - rows.zeros(columns)
        with damped(hessian, added):
            products = torch.stack([integers[:, part] @ hessian[part] for part in slices], 1)
        matrix = torch.stack([(products[:, :, part] * integers[:, None, part]).sum(2) for part in slices], 2).double()
        wanted = (products @ weight[begin : begin + height, :, None])[:, :, 0].double()
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal.add_(RIDGE * diagonal.mean(1, keepdim=True))
        diagonal.masked_fill_(diagonal == 0, 1.0)  # a row of zeros
        empty = wanted == 0
        solved = solutions(matrix, wanted).float().bfloat16()
        scales.append(torch.where(empty | ~torch.isfinite(solved) | (solved == 0), rows.scale, solved))
    scale = torch.cat(scales)
    fitted = output_errors(weight - replace(grid, scale=scale).decode(codes), hessian)
    better = fitted < error
    return torch.where(better[:, None], scale, grid.scale), torch.where(better, fitted, error)
