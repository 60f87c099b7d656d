"""Weights that transformers' loader reads one at a time, from another place than a file.

`from_pretrained(None, state_dict=...)` takes every value with `value[...]`, as it takes the slices of a safetensors
file, converts it to the parameter's dtype and lets go of it. So a state dict of values that are computed when they are
taken needs the memory of the model and of a few tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


class LazyWeight:
    """A tensor of a state dict that is read when the loader takes it."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def lazy_state_dict(names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """A state dict for `from_pretrained` whose tensors are read by `read(name)` when they are needed."""
    return {name: LazyWeight(lambda name=name: read(name)) for name in names}  # type: ignore[misc]
