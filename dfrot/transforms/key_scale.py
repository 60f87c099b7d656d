"""q, k: keys, which the cache rounds, are balanced against queries, which nothing rounds.

`q k^T` does not change when a channel of k is multiplied by s and the same channel of q divided by it. RoPE mixes the
two channels of a pair, so they share s; the queries of a group share the s of their key head. R3 spreads the energy of
a key over its channels, and so its rounding error: the error of the scores is `sum k_c^2 s_c^2 * sum q_c^2 / s_c^2`,
smallest at s_c^2 = rms(q_c) / rms(k_c). A large bias of the key projection (Qwen 2.5) is a large pair, and shrinks with
it.
"""

from __future__ import annotations

from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.rotation.transforms import key_factor_heads, refuses_key_factors, rotary_width
from dfrot.transforms.base import BlockMaps, BlockView
from dfrot.transforms.up_down import balance, energy_ratio


class KeyScale:
    """FreeTransform `key-scale`."""

    name = "key-scale"
    modes: tuple[str, ...] = ("product",)
    fills: tuple[str, ...] = ("key",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return refuses_key_factors(arch)

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`."""
        arch = view.arch
        half = rotary_width(arch) // 2
        energies = []
        for energy in (view.moments.key, view.moments.query):
            if key_factor_heads(arch) == 1:  # one gain for all heads
                energy = energy.mean(0, keepdim=True).expand_as(energy)
            energy = energy.clone()
            energy[:, :half] += energy[:, half : 2 * half]
            energy[:, half : 2 * half] = energy[:, :half]
            energies.append(energy)
        factors = [balance(key, query) for key, query in zip(*energies)]
        maps.key = torch.stack(factors)
        ratios = [energy_ratio(*parts) for parts in zip(view.moments.key, view.moments.query, factors)]
        return {"energy": sum(ratios) / len(ratios)}
