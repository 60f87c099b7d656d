"""Channel outliers behind norms, and at queries and keys: which channels, for which share of tokens, and why.

Behind a norm x_c = g_c n_c, so the gain's part of a ratio is exact: (|g_c| / median |g|) * (ratio without gain).
For queries and keys the terms W[o, i] x_i of an outlying output are ranked. The inputs that carry it are the paper's
"outlier-triggering channels" (arXiv 2505.21670), and the claim is checked by leaving them out of the product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.sketch import ChannelSketch

MAX_OUTLIERS = 32  # channels described per norm or projection
MAX_TRIGGERS = 8  # input channels named per outlying output
CURVE_POINTS = 64


def channel_ratios(medians: Tensor) -> Tensor:
    """Each channel's median |x| over the median channel's, [width]."""
    return medians / medians.median().clamp_min(1e-30)


def largest_ratios(values: Tensor, points: int = CURVE_POINTS) -> list[float]:
    """The `points` largest ratios, in falling order."""
    return [round(float(value), 4) for value in values.sort(descending=True).values[:points]]


def norm_outliers(sketch: ChannelSketch, gain: Tensor | None, limit: float) -> dict[str, Any]:
    """Channel outliers of one norm's output, JSON. gain [width]: as the norm multiplies; limit: ratio of an outlier."""
    medians = sketch.median()
    ratio = channel_ratios(medians)
    typical = float(medians.median())
    share = sketch.share_above(limit * typical)
    without_gain = channel_ratios(medians / gain.abs().clamp_min(1e-30)) if gain is not None else ratio
    gain_ratio = channel_ratios(gain.abs()) if gain is not None else torch.ones_like(ratio)
    outliers = _outlying_channels(ratio, limit)
    return {
        "channels": sorted(outliers),
        "count": len(outliers),
        "typical": typical,
        "kurtosis": sketch.kurtosis(),
        "absmax": float(sketch.absmax.max()),
        "curve": largest_ratios(ratio),
        "curve_without_gain": largest_ratios(without_gain),
        "gain_max_over_median": float(gain_ratio.max()),
        "outliers": [
            {
                "channel": channel,
                "ratio": float(ratio[channel]),
                "share_of_tokens": float(share[channel]),
                "gain_ratio": float(gain_ratio[channel]),
                "ratio_without_gain": float(without_gain[channel]),
                "explained_by_gain": _explained_by_gain(float(ratio[channel]), float(gain_ratio[channel])),
            }
            for channel in outliers[:MAX_OUTLIERS]
        ],
    }


def _outlying_channels(ratio: Tensor, limit: float) -> list[int]:
    """Channels with a ratio of at least `limit`, the largest first."""
    return [int(channel) for channel in torch.argsort(ratio, descending=True) if float(ratio[channel]) >= limit]


def _explained_by_gain(ratio: float, gain_ratio: float) -> float:
    """The gain's share of log(ratio), within 0..1."""
    return min(max(math.log(max(gain_ratio, 1e-30)) / math.log(ratio), 0.0), 1.0) if ratio > 1 else 0.0


def relative_read_energy(weights: list[Tensor], mean_square: Tensor, channels: list[int]) -> dict[int, float]:
    """|W[:, c]|^2 E[x_c^2] of each of `channels` over the median channel's, summed over the readers' weights [N, K].
    About 1 means that the weights compensate for the outlier."""
    energy = torch.zeros(len(mean_square), dtype=torch.float64)
    for weight in weights:
        energy += weight.float().square().sum(0).double()
    energy *= mean_square
    median = float(energy.median())
    return {channel: float(energy[channel]) / max(median, 1e-300) for channel in channels}


def head_outliers(
    sketch: ChannelSketch, weight: Tensor, mean_square: Tensor, rows: Tensor, limit: float
) -> dict[str, Any]:
    """Outlying output channels of a query or key projection and the inputs that trigger them, JSON.

    sketch: of its outputs; weight [N, K]; rows [n, K]: a sample of its inputs; mean_square [K]: of all its inputs;
    limit: ratio of an outlier."""
    ratio = channel_ratios(sketch.median())
    outliers = _outlying_channels(ratio, limit)
    outputs = rows.float() @ weight.float().T
    return {
        "channels": sorted(outliers),
        "count": len(outliers),
        "curve": largest_ratios(ratio),
        "absmax": float(sketch.absmax.max()),
        "outliers": [
            _triggers(channel, float(ratio[channel]), weight, mean_square, rows, outputs)
            for channel in outliers[:MAX_OUTLIERS]
        ],
    }


def _triggers(
    channel: int, ratio: float, weight: Tensor, mean_square: Tensor, rows: Tensor, outputs: Tensor
) -> dict[str, Any]:
    """The inputs that carry most of output `channel`, and its ratio on the sample with and without them."""
    energy = weight[channel].double().square() * mean_square
    top = torch.argsort(energy, descending=True)[:MAX_TRIGGERS]
    total = energy.sum().clamp_min(1e-300)
    own = outputs[:, channel].abs().median()
    without = outputs[:, channel] - rows[:, top].float() @ weight[channel, top].float()
    typical = outputs.abs().median(0).values.median().clamp_min(1e-30)
    return {
        "channel": channel,
        "ratio": ratio,
        "inputs": [{"channel": int(index), "share": float(energy[index] / total)} for index in top.tolist()],
        "sample_ratio": float(own / typical),
        "sample_ratio_without_inputs": float(without.abs().median() / typical),
    }
