"""Resets: massive activations replaced by a constant behind the block that creates them.

The value of a massive activation hardly varies between tokens, and replacing it by its mean leaves a model as it was
(Sun et al., arXiv 2402.17762). Which tokens have one is only known while the model runs, by its magnitude, so no change
of a weight can do this: config.json lists the resets, and hooks apply them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Reset:
    """Large values of one channel of a block's output become a constant."""

    module: str
    """The block, by full module name."""
    channel: int
    """Index into the last dimension of its output."""
    above: float
    """Values x with |x| above this are replaced."""
    to: float
    """The constant."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Reset:
        """The inverse of `to_dict`. Raises ValueError or TypeError for what is no reset."""
        if set(value) != set(cls.__dataclass_fields__):
            raise ValueError(f"reset {value!r} needs {', '.join(cls.__dataclass_fields__)}")
        reset = cls(str(value["module"]), int(value["channel"]), float(value["above"]), float(value["to"]))
        if reset.channel < 0 or not (0 < reset.above < math.inf and math.isfinite(reset.to)):
            raise ValueError(f"reset {value!r} is out of range")
        return reset

    def apply(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] with the entries replaced; a copy only where there is something to replace."""
        column = hidden[..., self.channel]
        massive = column.abs() > self.above
        if not bool(massive.any()):
            return hidden
        out = hidden.clone()
        out[..., self.channel] = column.masked_fill(massive, self.to)
        return out


def attach(root: nn.Module, resets: Iterable[Reset], prefix: str = "") -> None:
    """Hook the resets of a model (`root`, without prefix), or those of its block `prefix` (`root`)."""
    for reset in resets:
        if reset.module == prefix or not prefix:
            module = root.get_submodule(reset.module) if not prefix else root
            module.register_forward_hook(partial(_reset_output, reset))  # no closure: models can be pickled


def _reset_output(reset: Reset, module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook, once `reset` is given."""
    if isinstance(output, tuple):
        return (reset.apply(output[0]), *output[1:])
    return reset.apply(output)
