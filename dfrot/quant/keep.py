"""Which linears stay in 16 bits: the user's patterns, resolved against the names of the model's linears."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from dfrot.arch import BoundArch
from dfrot.errors import InputError


def linear_names(arch: BoundArch) -> list[str]:
    """Every linear that can be quantized, by full module name: those of the blocks, then the head."""
    return [*(name for _, _, name in arch.linears()), arch.spec.head.name]


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` is the full name, a glob over it, or its end (`down_proj`, `mlp.down_proj`)."""
    return fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


def resolve(arch: BoundArch, patterns: Sequence[str]) -> tuple[str, ...]:
    """Full names of the linears to keep. Raises InputError for a pattern that matches nothing: a misspelt name
    would otherwise be quantized silently."""
    names = linear_names(arch)
    kept: set[str] = set()
    for pattern in patterns:
        matching = [name for name in names if matches(pattern, name)]
        if not matching:
            tails = {name.removeprefix(f"{arch.prefix(i)}.") for i in range(arch.n_layers) for name in names}
            near = difflib.get_close_matches(pattern, [*names, *sorted(tails)], 1, cutoff=0.3)
            hint = f"; nearest: {near[0]}" if near else ""
            raise InputError(
                f"`keep` {pattern}: matches no linear of this {arch.spec.model_type} model{hint}", field="keep"
            )
        kept.update(matching)
    return tuple(name for name in names if name in kept)
