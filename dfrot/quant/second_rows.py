"""Second rows: in a head of 4 bits, frequent tokens have two rows of codes, the second for what the first leaves.

The stored weight has V + R rows; row V + i belongs to token `second[i]` and is added to its row. Two rows of 4 bits are
about as exact as one of 8, and the kernels see one weight of 4 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.errors import InputError


def folded_weight(weight: Tensor, second: Tensor, rows: int) -> Tensor:
    """weight float [rows + R, K], second int [R] -> [rows, K], second rows added to the rows of their tokens."""
    return weight[:rows].index_add(0, second.long(), weight[rows:])


def folded_outputs(out: Tensor, second: Tensor, rows: int) -> Tensor:
    """Products with the stored weight [..., rows + R] -> those with the folded one [..., rows]."""
    folded = out[..., :rows].clone()
    ids = second.long()
    folded[..., ids] = folded[..., ids] + out[..., rows:]  # no id repeats
    return folded


def most_frequent(tokens: Tensor, vocab: int, count: int) -> Tensor:
    """The `count` most frequent of int64 `tokens`, as ascending int32 ids; of equally frequent ones, the smallest."""
    frequencies = torch.bincount(tokens.flatten(), minlength=vocab)
    chosen = torch.argsort(frequencies, descending=True, stable=True)[:count]
    return chosen.sort().values.to(torch.int32)


def check_second(second: Tensor, rows: int, name: str) -> None:
    """Raise InputError unless int32 `second` of module `name` holds ascending ids below `rows`."""
    ids = second.long()
    if len(ids) and (int(ids[0]) < 0 or int(ids[-1]) >= rows or bool((ids.diff() <= 0).any())):
        raise InputError(
            f"tensor {name}.weight_second holds no ascending token ids below {rows}; the checkpoint is damaged, make "
            "it again",
            tensor=f"{name}.weight_second",
        )
