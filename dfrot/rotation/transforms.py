"""Invertible maps inside a block that weights absorb on both sides, beside the rotations.

With rows as vectors (`y = x W^T`), per layer:

    up -> down     up's rows times s, down's columns divided by s: nothing but a product lies between them
    v -> o         values become (v - m) T, attention's output (x - m) T: its weights sum to 1 and mix tokens only
    q, k           a key channel times s, the query channel divided by s: q k^T stays, if RoPE's pairs share s
    norm -> q, ... a norm's gain becomes s, in the basis of R1 if there is one; what it feeds is divided by s

Any of them can be combined with any rotation. `dfrot.transforms` chooses the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.arch.rope import rope_parameters
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.matrix_stacks import inverses
from dfrot.tensor_file import load_tensors, save_tensors

TRANSFORMS_FILE = "transforms.safetensors"


@dataclass(frozen=True)
class Transforms:
    """The maps to fuse, float64; None leaves a pair of linears as it is."""

    up: Tensor | None = None
    """[layers, experts or 1, intermediate]: factors of up's rows; down's columns are divided by them."""
    value: Tensor | None = None
    """[layers, kv heads, D, D]: T of every value head, inverted in the output projection."""
    value_shift: Tensor | None = None
    """[layers, kv heads, D]: m, subtracted from values; the output projection's bias takes it back."""
    key: Tensor | None = None
    """[layers, kv heads, D]: factors of key channels; query channels are divided by them."""
    norm: Tensor | None = None
    """[layers, norms, hidden]: gains, in the basis of R1 if there is one; what the norm feeds is divided by them."""

    def shapes(self, arch: BoundArch) -> dict[str, tuple[int, ...]]:
        """The shape of every map for a model."""
        layers, heads, width = arch.n_layers, arch.n_kv_heads, arch.head_dim
        return {
            "up": (layers, max(1, arch.n_experts), arch.intermediate),
            "value": (layers, heads, width, width),
            "value_shift": (layers, heads, width),
            "key": (layers, heads, width),
            "norm": (layers, len(arch.spec.norms), arch.hidden),
        }

    def check(self, arch: BoundArch) -> None:
        """Raise MismatchError for maps of another model, UnsupportedError where the architecture has no slot for a
        shift or a factor, InputError for values that cannot be inverted."""
        for name, shape in self.shapes(arch).items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape:
                raise MismatchError(
                    f"transform {name}: is {list(value.shape)}, this model needs {list(shape)}; it belongs to another"
                )
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"transform {name}: holds NaN or Inf")
        for name in ("up", "key"):
            factors = getattr(self, name)
            if factors is not None and not bool((factors > 0).all()):
                raise InputError(f"transform {name}: factors must be above 0")
        if self.norm is not None and not bool((self.norm != 0).all()):
            raise InputError("transform norm: gains must not be 0")
        if self.value is not None and not bool(torch.isfinite(inverses(self.value)).all()):
            raise InputError("transform value: a matrix cannot be inverted")
        if self.value_shift is not None and (reason := refuses_shift(arch)):
            raise UnsupportedError(reason)
        if self.key is not None and (reason := refuses_key_factors(arch)):
            raise UnsupportedError(reason)

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        save_tensors(path, {name: value.contiguous() for name, value in tensors.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> Transforms:
        """The inverse of `save`. Raises InputError when the file is damaged or holds something else."""
        tensors = load_tensors(path)
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(tensors) - known):
            raise InputError(f"{path}: tensor {unknown[0]}: is no transform; written by a newer dfq?", file=path)
        return cls(**{name: tensor.to(torch.float64) for name, tensor in tensors.items()})


def refuses_shift(arch: BoundArch) -> str | None:
    """Why values cannot be shifted, or None: the output projection needs a bias that takes the shift back."""
    if arch.spec.attention_bias_key:
        return None
    return (
        f"{arch.spec.model_type}: values cannot be centred: transformers gives the output projection of this "
        "architecture no bias, which would have to take the mean back"
    )


def refuses_key_factors(arch: BoundArch) -> str | None:
    """Why key channels cannot be scaled, or None: behind a q and k norm the norms' gains must hold the factors."""
    if len(arch.spec.head_norms) not in (0, 2):
        return f"{arch.spec.model_type}: keys cannot be scaled: one norm alone acts on queries and keys"
    return None


def key_factor_heads(arch: BoundArch) -> int:
    """How many heads have factors of their own: 1 where all heads share the gain of one k norm."""
    shared = arch.spec.head_norms and not arch.spec.head_norm_sizes
    return 1 if shared else arch.n_kv_heads


def per_query_head(arch: BoundArch, value: Tensor) -> Tensor:
    """[kv heads, ...] -> [query heads, ...]: the entry of each query head's group."""
    return value.repeat_interleave(arch.n_heads // arch.n_kv_heads, 0)


def head_norm_factor(arch: BoundArch, number: int, factors: Tensor) -> Tensor:
    """What the gain of head norm `number` (0: queries, 1: keys) is multiplied by; factors [kv heads, D]."""
    factors = per_query_head(arch, 1 / factors) if number == 0 else factors
    return factors.flatten() if arch.spec.head_norm_sizes else factors[0]


def rotary_width(arch: BoundArch) -> int:
    """Channels of a head that RoPE acts on; channel i and i + half of them form a pair. Those behind them stay."""
    if not arch.spec.partial_rotary:
        return arch.head_dim
    share = rope_parameters(arch.config).get("partial_rotary_factor") or arch.config.get("partial_rotary_factor") or 1.0
    return int(arch.head_dim * share)
