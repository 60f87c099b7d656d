"""Resets: massive activations put to a constant behind the block that creates them.

Which tokens carry a massive activation is decided while the model runs (its size tells), what they carry hardly varies:
replacing it by its mean leaves a model as it was (Sun et al., arXiv 2402.17762). A weight cannot say "a constant, for
these tokens only", so the checkpoint says it in config.json and the runtime does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Reset:
    """In the output of `module` (a block, by full name), entries of `channel` with |x| > `above` become `to`."""

    module: str
    channel: int
    above: float
    to: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Reset:
        """Raises ValueError or TypeError for what is no reset."""
        if set(value) != set(cls.__dataclass_fields__):
            raise ValueError(f"reset {value!r} needs {', '.join(cls.__dataclass_fields__)}")
        reset = cls(str(value["module"]), int(value["channel"]), float(value["above"]), float(value["to"]))
        if reset.channel < 0 or not (0 < reset.above < math.inf and math.isfinite(reset.to)):
            raise ValueError(f"reset {value!r} is out of range")
        return reset

    def apply(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] with the entries replaced; a copy only where there is something to replace."""
        column = hidden[..., self.channel]
        found = column.abs() > self.above
        if not bool(found.any()):
            return hidden
        out = hidden.clone()
        out[..., self.channel] = column.masked_fill(found, self.to)
        return out


def attach(root: nn.Module, resets: Iterable[Reset], prefix: str = "") -> None:
    """Hook every reset whose module lies in `root`, which is the module `prefix` of the model."""
    for reset in resets:
        inside = reset.module == prefix or not prefix
        if inside:
            module = root.get_submodule(reset.module) if not prefix else root
            module.register_forward_hook(_hook(reset))


def _hook(reset: Reset) -> Any:
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (reset.apply(output[0]), *output[1:])
        return reset.apply(output)

    return after
