"""Free transforms: maps between two linears that both absorb, chosen in closed form from moments of activations.

One module each behind one interface (`base.FreeTransform`); `dfrot.rotation.transforms` says where each may stand.
"""

from __future__ import annotations

import difflib

from dfrot.errors import InputError
from dfrot.transforms.base import BlockMaps, BlockView, FreeTransform, stacked
from dfrot.transforms.key_scale import KeyScale
from dfrot.transforms.up_down import UpDown
from dfrot.transforms.value_heads import HeadCenter, HeadScale, HeadWhiten

TRANSFORMS: dict[str, FreeTransform] = {
    transform.name: transform for transform in (UpDown(), HeadCenter(), HeadScale(), HeadWhiten(), KeyScale())
}
"""By name, in the order in which they are solved."""


def transform_names() -> list[str]:
    """Every `NAME:MODE`."""
    return [f"{transform.name}:{mode}" for transform in TRANSFORMS.values() for mode in transform.modes]


def parse_transform(text: str) -> tuple[FreeTransform, str]:
    """The transform and mode of `up-down:max`, or of a bare name with its first mode. Raises InputError."""
    name, _, mode = text.partition(":")
    transform = TRANSFORMS.get(name)
    if transform is None or (mode and mode not in transform.modes):
        near = difflib.get_close_matches(text, transform_names(), 1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise InputError(
            f"`transform={text}`: unknown; choose of {', '.join(transform_names())}{hint}", field="transform"
        )
    return transform, mode or transform.modes[0]


__all__ = ["TRANSFORMS", "BlockMaps", "BlockView", "FreeTransform", "parse_transform", "stacked", "transform_names"]
