"""Clip search: shrink each row's (or group's) range so that the weight itself is approximated best.

Of 80 ratios p = 1 - i/100 the one with the smallest `sum |w - Q_p(w)|^2.4` wins, the largest p among equals: the
`w_clip` of GPTQ as QuaRot and DFRot use it (arXiv 2404.00456, 2412.00648). No Hessian is involved. Most of the
80 steps are skipped: once the cost of the clipped values alone exceeds the best total, no smaller ratio can win, and
the row is done. That bound is exact up to rounding, so the result is that of the full search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.quant.rounding.grid import grouped, parameters

STEPS = 80  # ratios 1.00, 0.99, ... 0.21
EXPONENT = 2.4  # of the distance, as in GPTQ's code
CHUNK = 1 << 18  # elements searched together: the temporaries stay in cache
SLACK = 2.0**-7  # rounding the scale to bfloat16 moves the ends of a range by less than this fraction
TINY = 1e-30  # log2 of it is finite; to the 2.4 it is zero in float32
MIN_EXTREMES, EXTREME_SHARE = 8, 32  # the lower bound counts the 8 + K / 32 largest values of a row


def _cost(distance: Tensor) -> Tensor:
    """sum distance^2.4 over the last dimension; distance >= 0 is overwritten. exp2/log2 is 3x faster than pow."""
    return distance.clamp_(min=TINY).log2_().mul_(EXPONENT).exp2_().sum(-1)


def _clipping_cost(extreme: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """A lower bound on the cost of the values `extreme` [R, t] under the range [low, high], both [R, 1], and under any
    smaller range."""
    half = 2 ** (bits - 1)
    slack = (high - low) * SLACK
    if symmetric:
        peak = torch.maximum(-low, high)
        low, high = -peak * half / (half - 1), peak  # a clipped range may use code 0 as well
    else:
        slack = slack + (high - low) / (2 * (2**bits - 1))  # the zero code is rounded
    beyond = torch.maximum(extreme - (high + slack), (low - slack) - extreme)
    return _cost(beyond.clamp_(min=0))


def _search_rows(rows: Tensor, bits: int, symmetric: bool, signed: bool) -> Tensor:
    """Best ratio [R] for each row of float32 [R, g]."""
    top = 2**bits - 1
    low, high = torch.aminmax(rows, dim=1, keepdim=True)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    # the search is invariant under a common factor, but small weights to the 2.4 would underflow; a power of two
    # commutes with the rounding to bfloat16
    exponent = -torch.frexp(torch.maximum(-low, high)).exponent
    rows, low, high = (torch.ldexp(t, exponent) for t in (rows, low, high))
    count = min(rows.shape[1], MIN_EXTREMES + rows.shape[1] // EXTREME_SHARE)
    extreme = rows.gather(1, torch.topk(rows.abs(), count, dim=1).indices)

    best = torch.full((len(rows),), torch.inf)
    ratio = torch.ones(len(rows))
    active = torch.arange(len(rows))
    for step in range(STEPS):
        p = 1 - step / 100
        if step:
            keep = _clipping_cost(extreme, low * p, high * p, bits, symmetric) < best[active]
            if not bool(keep.all()):
                active, rows, low, high, extreme = (t[keep] for t in (active, rows, low, high, extreme))
                if not len(active):
                    break
        scale, zero = parameters(low * p, high * p, bits, symmetric, signed)
        nearest = torch.round(rows / scale).add_(zero).clamp_(0, top).sub_(zero).mul_(scale)
        cost = _cost(nearest.sub_(rows).abs_())
        better = cost < best[active]
        chosen = active[better]
        best[chosen] = cost[better]
        ratio[chosen] = p
    return ratio


def search(weight: Tensor, bits: int, symmetric: bool, group: int = 0, signed: bool = False) -> Tensor:
    """The best clip ratios float32 [N, G] of a weight float32 [N, K], for `grid.fit` with the same arguments; CHUNK
    elements at a time."""
    rows = grouped(weight, group)
    height = max(1, CHUNK // max(rows.shape[1], 1))
    parts = [_search_rows(part, bits, symmetric, signed) for part in torch.split(rows, height)]
    return torch.cat(parts).reshape(weight.shape[0], -1)
