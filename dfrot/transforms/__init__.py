"""Free transforms: maps between two linears that both absorb, chosen in closed form from moments of activations.

One module each behind one interface (`base.FreeTransform`); `dfrot.rotation.transforms` says where each may stand.
"""

from __future__ import annotations

from dfrot.settings import choose_mode
from dfrot.transforms.base import FreeTransform
from dfrot.transforms.key_scale import KeyScale
from dfrot.transforms.norm_scale import NormScale
from dfrot.transforms.up_down import UpDown
from dfrot.transforms.value_heads import HeadCenter, HeadScale, HeadWhiten

TRANSFORMS: dict[str, FreeTransform] = {
    transform.name: transform
    for transform in (NormScale(), UpDown(), HeadCenter(), HeadScale(), HeadWhiten(), KeyScale())
}
"""By name, in the order in which they are solved."""
AUTO_TRANSFORMS = ("up-down", "head-whiten", "key-scale")
"""What is chosen beside rotations unless transforms are named: those that lower the error of every model measured and
add no tensor."""
SMOOTH_TRANSFORMS = ("norm-scale", "up-down:groups")
"""What is chosen without rotations, for formats with a scale per group of channels."""


def parse_transform(text: str) -> tuple[FreeTransform, str]:
    """The transform and mode of `up-down:max`, or of a bare name with its first mode. Raises InputError."""
    return choose_mode("transform", text, TRANSFORMS)


__all__ = ["AUTO_TRANSFORMS", "SMOOTH_TRANSFORMS", "TRANSFORMS", "FreeTransform", "parse_transform"]
