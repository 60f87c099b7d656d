"""Generated RMSNorm outputs that behave like a large model's, without its weights.

Massive rows carry the values published for LLaMA2-7B (constants of locuslab/massive-activations, lib/hook.py; Sun
et al. 2024, arXiv 2402.17762): the start token has 767.6 in channel 2533 and -458.55 in channel 1415, the first
delimiter 2546.8 and -1502.0, over a background of median about 1/1000 of the largest value (their definition of a
massive activation). Common rows follow three channel profiles: Gaussian, Laplace, and twenty channels that hold
half of the energy.

`ERROR_TABLE` is the toy table that explains DFRot's finding: the 4-bit error per token, relative to its norm, of seven
kinds of tokens without rotation, under a randomised Hadamard and under a random orthogonal matrix.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import InputError

WIDTH = 4096
CHANNELS = (1415, 2533)
START_TOKEN = (-458.55, 767.6)  # values in CHANNELS
DELIMITER = (-1502.0, 2546.8)
BACKGROUND = 1.0  # standard deviation of the other channels: 767.6 is 1138 x their median magnitude
DELIMITER_CHANGE = 0.25  # of the variance of its background, from text to text
PROFILES = ("gaussian", "laplace", "channels")
HEAVY_CHANNELS, HEAVY_ENERGY = 20, 0.5


def unit_rms(rows: Tensor) -> Tensor:
    """Rows [n, d] scaled to norm sqrt(d), float32."""
    return (rows * torch.rsqrt(rows.double().square().mean(1, keepdim=True)).to(rows.dtype)).float()


def common_rows(
    profile: str, count: int, width: int, seed: int | tuple[int, ...], heavy: Tensor | None = None
) -> Tensor:
    """Rows [count, width] float32 of a channel profile, norm sqrt(width).

    heavy: the channels of the profile `channels` (default: twenty random ones): equal values, random signs, on top
    of the Gaussian background.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    if profile not in PROFILES:
        raise InputError(f"channel profile {profile!r}: unknown; one of {', '.join(PROFILES)}")
    if profile == "laplace":
        return unit_rms(torch.from_numpy(generator.laplace(size=(count, width)).astype(np.float32)))
    rows = torch.from_numpy(generator.standard_normal((count, width), dtype=np.float32))
    if profile == "channels":
        if heavy is None:
            heavy = torch.from_numpy(generator.permutation(width)[: min(HEAVY_CHANNELS, width // 2)].copy())
        size = math.sqrt(HEAVY_ENERGY / (1.0 - HEAVY_ENERGY) * width / len(heavy))
        signs = torch.from_numpy(np.where(generator.random((count, len(heavy))) < 0.5, -size, size).astype(np.float32))
        rows[:, heavy] += signs
    return unit_rms(rows)


def massive_profile_rows(
    values: tuple[float, ...], energy: float, count: int, width: int, seed: int | tuple[int, ...]
) -> Tensor:
    """Rows [count, width]: channels 0, 1, ... hold `energy` of each row in the proportion of `values` with random
    signs, over a Gaussian background; norm sqrt(width)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = torch.from_numpy(generator.standard_normal((count, width), dtype=np.float32))
    magnitudes = torch.tensor(values)
    rest = rows[:, len(values) :].square().sum(1, keepdim=True)
    signs = torch.from_numpy(np.where(generator.random((count, len(values))) < 0.5, -1.0, 1.0).astype(np.float32))
    rows[:, : len(values)] = signs * (magnitudes / magnitudes.norm()) * (rest * energy / (1.0 - energy)).sqrt()
    return unit_rms(rows)


ERROR_TABLE: dict[str, tuple[float, ...]] = {  # no rotation, Hadamard, orthogonal: symmetric; then asymmetric
    "gaussian": (0.156, 0.156, 0.157, 0.140, 0.139, 0.140),
    "laplace": (0.246, 0.157, 0.155, 0.215, 0.141, 0.138),
    "channels": (0.464, 0.148, 0.160, 0.428, 0.131, 0.142),
    "1 spike, 99 %": (0.100, 0.056, 0.145, 0.100, 0.026, 0.134),
    "2 spikes 1:0.6, 99 %": (0.103, 0.072, 0.150, 0.106, 0.033, 0.136),
    "2 spikes 1:0.6, 99.9 %": (0.040, 0.079, 0.150, 0.044, 0.029, 0.135),
    "4 spikes 1:0.5:0.3:0.2, 99 %": (0.126, 0.076, 0.155, 0.107, 0.039, 0.141),
}
MASSIVE_PROFILES = {
    "1 spike, 99 %": ((1.0,), 0.99),
    "2 spikes 1:0.6, 99 %": ((1.0, 0.6), 0.99),
    "2 spikes 1:0.6, 99.9 %": ((1.0, 0.6), 0.999),
    "4 spikes 1:0.5:0.3:0.2, 99 %": ((1.0, 0.5, 0.3, 0.2), 0.99),
}


def table_rows(name: str, count: int = 64, width: int = WIDTH, seed: int = 0) -> Tensor:
    """The rows [count, width] of one line of `ERROR_TABLE`; massive and heavy channels come first."""
    if name in MASSIVE_PROFILES:
        return massive_profile_rows(*MASSIVE_PROFILES[name], count, width, seed)
    return common_rows(name, count, width, seed, heavy=torch.arange(HEAVY_CHANNELS))


def massive_rows(count: int, width: int = WIDTH, seed: int = 0, model: int = 0) -> Tensor:
    """Rows [count, width] of norm sqrt(width): start token and delimiter in turn, one pair per norm of a model.

    `model` seeds what the model determines: under causal attention the start token's row at a norm is the same in every
    text. `seed` seeds what the text changes: DELIMITER_CHANGE of the variance of a delimiter's background (our
    assumption). Other widths use the channels modulo the width and the values times sqrt(width / 4096), which keeps
    the share of energy.
    """
    fixed = np.random.Generator(np.random.PCG64([model, 0])).standard_normal((count, width), dtype=np.float32)
    fresh = np.random.Generator(np.random.PCG64([seed, 0])).standard_normal((count, width), dtype=np.float32)
    rows, changed = torch.from_numpy(fixed), torch.from_numpy(fresh)[1::2]
    rows[1::2] = rows[1::2] * math.sqrt(1.0 - DELIMITER_CHANGE) + changed * math.sqrt(DELIMITER_CHANGE)
    rows *= BACKGROUND
    channels = [channel % width for channel in CHANNELS]
    factor = math.sqrt(width / WIDTH)
    rows[0::2, channels] = torch.tensor(START_TOKEN) * factor
    rows[1::2, channels] = torch.tensor(DELIMITER) * factor
    return unit_rms(rows)


def llama_like_rows(
    common: int, massive: int, width: int = WIDTH, seed: int = 0, profiles: tuple[str, ...] = PROFILES
) -> tuple[Tensor, Tensor]:
    """Rows [common + massive, width] float32 and their massive mask; massive rows first, then each profile."""
    parts = [massive_rows(massive, width, seed)]
    for index, profile in enumerate(profiles):
        share = common // len(profiles) + (1 if index < common % len(profiles) else 0)
        parts.append(common_rows(profile, share, width, (seed, 1 + index)))
    mask = torch.zeros(massive + common, dtype=torch.bool)
    mask[:massive] = True
    return torch.cat(parts), mask
