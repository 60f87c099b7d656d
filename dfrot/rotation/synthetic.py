"""RMSNorm outputs that behave like a large model's, generated: no weights needed.

Massive rows carry the values published for LLaMA2-7B (constants of locuslab/massive-activations, lib/hook.py; Sun
et al. 2024, arXiv 2402.17762): the start token has 767.6 in channel 2533 and -458.55 in channel 1415, the first
delimiter 2546.8 and -1502.0, over a background of median about 1/1000 of the largest value (their definition of a
massive activation). Common rows follow three channel profiles: Gaussian, Laplace, and twenty channels that hold
half of the energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import InputError

WIDTH = 4096
CHANNELS = (1415, 2533)
START_TOKEN = (-458.55, 767.6)  # values in CHANNELS
DELIMITER = (-1502.0, 2546.8)
BACKGROUND = 1.0  # standard deviation of the other channels: 767.6 is 1138 x their median magnitude
PROFILES = ("gaussian", "laplace", "channels")
HEAVY_CHANNELS, HEAVY_ENERGY = 20, 0.5


@dataclass(frozen=True)
class SpikeProfile:
    """`count` massive tokens as `values` (relative sizes) holding `energy` of the whole."""

    values: tuple[float, ...]
    energy: float


def unit_rms(rows: Tensor) -> Tensor:
    """Rows [n, d] scaled to norm sqrt(d), float32."""
    return (rows * torch.rsqrt(rows.double().square().mean(1, keepdim=True)).to(rows.dtype)).float()


def common_rows(profile: str, count: int, width: int, seed: int | tuple[int, ...]) -> Tensor:
    """Rows [count, width] float32 of a channel profile, norm sqrt(width)."""
    draw = np.random.Generator(np.random.PCG64(seed))
    if profile == "gaussian":
        rows = draw.standard_normal((count, width), dtype=np.float32)
    elif profile == "laplace":
        rows = draw.laplace(size=(count, width)).astype(np.float32)
    elif profile == "channels":
        rows = draw.standard_normal((count, width), dtype=np.float32)
        heavy = draw.permutation(width)[: min(HEAVY_CHANNELS, width // 2)]
        share = HEAVY_ENERGY / (1.0 - HEAVY_ENERGY) * (width - len(heavy)) / len(heavy)
        signs = np.where(draw.random((count, len(heavy))) < 0.5, -1.0, 1.0)
        rows[:, heavy] = (math.sqrt(share) * signs).astype(np.float32)
    else:
        raise InputError(f"channel profile {profile!r}: unknown; one of {', '.join(PROFILES)}")
    return unit_rms(torch.from_numpy(rows))


def spike_rows(spikes: SpikeProfile, count: int, width: int, seed: int | tuple[int, ...]) -> Tensor:
    """Rows [count, width]: fixed spikes that hold `energy` of each row over a Gaussian background, norm sqrt(width)."""
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = draw.standard_normal((count, width), dtype=np.float32)
    at = [(CHANNELS[0] * (i + 1)) % width for i in range(len(spikes.values))]
    values = torch.tensor(spikes.values)
    rows_t = torch.from_numpy(rows)
    rows_t[:, at] = 0.0
    rest = rows_t.square().sum(1, keepdim=True)
    rows_t[:, at] = values / values.norm() * (rest * spikes.energy / (1.0 - spikes.energy)).sqrt()
    return unit_rms(rows_t)


def llama_like_rows(
    common: int, massive: int, width: int = WIDTH, seed: int = 0, profiles: tuple[str, ...] = PROFILES
) -> tuple[Tensor, Tensor]:
    """Rows [common + massive, width] float32 and their massive mask.

    Massive rows alternate between start token and delimiter, first in the result. Other widths use the channels
    modulo the width and the values times sqrt(width / 4096), which keeps the share of energy.
    """
    draw = np.random.Generator(np.random.PCG64([seed, 0]))
    heavy = torch.from_numpy(draw.standard_normal((massive, width), dtype=np.float32)) * BACKGROUND
    at = [channel % width for channel in CHANNELS]
    factor = math.sqrt(width / WIDTH)
    for row in range(massive):
        values = START_TOKEN if row % 2 == 0 else DELIMITER
        heavy[row, at] = torch.tensor(values) * factor
    parts = [unit_rms(heavy)]
    for index, profile in enumerate(profiles):
        share = common // len(profiles) + (1 if index < common % len(profiles) else 0)
        parts.append(common_rows(profile, share, width, (seed, 1 + index)))
    rows = torch.cat(parts)
    mask = torch.zeros(len(rows), dtype=torch.bool)
    mask[:massive] = True
    return rows, mask
