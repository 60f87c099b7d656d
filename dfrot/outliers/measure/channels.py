"""Channel outliers at what linears read behind a norm, and at queries and keys: which, how steady, and why.

Behind a norm x_c = g_c n_c, so the gain's part of a ratio is exact: r = (|g_c| / typical |g|) * (ratio without gain).
For queries and keys the terms W[o, i] x_i of an outlying output are ranked; the inputs that carry it are the paper's
"outlier-triggering channels" (arXiv 2505.21670), and the claim is checked by leaving them out of the product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.sketch import ChannelSketch

LISTED = 32  # channels told in full per tap
TRIGGERS = 8  # input channels told per outlying output


def channel_ratios(medians: Tensor) -> Tensor:
    """Each channel's median |x| over the median channel's, [width]."""
    return medians / medians.median().clamp_min(1e-30)


def largest_ratios(values: Tensor, points: int = 64) -> list[float]:
    """The largest ratios, falling: the whole picture of which a count at one threshold is one number."""
    return [round(float(v), 4) for v in values.sort(descending=True).values[:points]]


def norm_outliers(sketch: ChannelSketch, gain: Tensor | None, limit: float) -> dict[str, Any]:
    """Channel outliers of one norm's output; `gain` [width] as the norm multiplies it."""
    medians = sketch.median()
    ratio = channel_ratios(medians)
    typical = float(medians.median())
    steady = sketch.share_above(limit * typical)
    bare = channel_ratios(medians / gain.abs().clamp_min(1e-30)) if gain is not None else ratio
    spread = channel_ratios(gain.abs()) if gain is not None else torch.ones_like(ratio)
    found = [int(c) for c in torch.argsort(ratio, descending=True) if float(ratio[c]) >= limit]
    return {
        "channels": sorted(found),
        "count": len(found),
        "typical": typical,
        "kurtosis": sketch.kurtosis(),
        "absmax": float(sketch.absmax.max()),
        "curve": largest_ratios(ratio),
        "curve_without_gain": largest_ratios(bare),
        "gain_max_over_median": float(spread.max()),
        "outliers": [
            {
                "channel": c,
                "ratio": float(ratio[c]),
                "share_of_tokens": float(steady[c]),
                "gain_ratio": float(spread[c]),
                "ratio_without_gain": float(bare[c]),
                "explained_by_gain": _explained(float(ratio[c]), float(spread[c])),
            }
            for c in found[:LISTED]
        ],
    }


def _explained(ratio: float, gain: float) -> float:
    """The gain's share of log(ratio), within 0..1."""
    return min(max(math.log(max(gain, 1e-30)) / math.log(ratio), 0.0), 1.0) if ratio > 1 else 0.0


def relative_read_energy(weights: list[Tensor], mean_square: Tensor, channels: list[int]) -> dict[int, float]:
    """What the readers make of a channel: |W[:, c]|^2 E[x_c^2] over the median channel's. 1: compensated by weights."""
    energy = torch.zeros(len(mean_square), dtype=torch.float64)
    for weight in weights:
        energy += weight.float().square().sum(0).double()
    energy *= mean_square
    middle = float(energy.median())
    return {c: float(energy[c]) / max(middle, 1e-300) for c in channels}


def head_outliers(
    sketch: ChannelSketch, weight: Tensor, mean_square: Tensor, rows: Tensor, limit: float
) -> dict[str, Any]:
    """Outlying output channels of a query or key projection (weight [N, K]) and the inputs that trigger them.

    rows [n, K]: a sample of its inputs; mean_square [K] of them over all tokens."""
    ratio = channel_ratios(sketch.median())
    found = [int(c) for c in torch.argsort(ratio, descending=True) if float(ratio[c]) >= limit]
    outputs = rows.float() @ weight.float().T
    told = [_triggers(c, float(ratio[c]), weight, mean_square, rows, outputs) for c in found[:LISTED]]
    return {
        "channels": sorted(found),
        "count": len(found),
        "curve": largest_ratios(ratio),
        "absmax": float(sketch.absmax.max()),
        "outliers": told,
    }


def _triggers(
    out: int, ratio: float, weight: Tensor, mean_square: Tensor, rows: Tensor, outputs: Tensor
) -> dict[str, Any]:
    energy = weight[out].double().square() * mean_square
    top = torch.argsort(energy, descending=True)[:TRIGGERS]
    before = outputs[:, out].abs().median()
    without = outputs[:, out] - rows[:, top].float() @ weight[out, top].float()
    typical = outputs.abs().median(0).values.median().clamp_min(1e-30)
    return {
        "channel": out,
        "ratio": ratio,
        "inputs": [
            {"channel": int(c), "share": float(energy[c] / energy.sum().clamp_min(1e-300))} for c in top.tolist()
        ],
        "sample_ratio": float(before / typical),
        "sample_ratio_without_inputs": float(without.abs().median() / typical),
    }
