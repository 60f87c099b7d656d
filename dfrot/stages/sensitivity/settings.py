"""Settings of `dfq eval sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import UnsupportedError
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.settings import check, same_as, setting
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.rotate.settings import RotateSettings


@dataclass(frozen=True)
class SensitivitySettings:
    """What is rounded, and on how much text its cost is measured."""

    scheme: QuantScheme = setting(default_factory=QuantScheme, help="Bits and conventions of what is rounded.")
    dataset: str = same_as(PerplexitySettings, "dataset")
    seqlen: int = same_as(PerplexitySettings, "seqlen", default=512)
    windows: int = setting(4, minimum=1, metavar="N", help="Number of windows, the first ones of the test split.")
    positions: int = setting(
        1024, minimum=0, help="Predictions that are compared, evenly spaced over the windows; 0 compares all."
    )
    layers: str = setting(
        "parts",
        choices=("none", "parts", "inputs"),
        help="What is also rounded one layer at a time: none, parts (weights, activations, keys, values) or inputs (of "
        "every linear, in place of all activations; twice the time).",
    )
    mse_clip: bool = setting(
        True, help="Search the clip ratio of every weight row or group for the smallest error, as dfq quantize does."
    )
    massive_rule: str = same_as(RotateSettings, "massive_rule")

    def __post_init__(self) -> None:
        check(self)
        MassiveRule.parse(self.massive_rule)
        self.scheme.require_integers("dfq eval sensitivity rounds to")
        if {self.scheme.w_bits, self.scheme.a_bits, self.scheme.kv_bits} == {FULL}:
            raise UnsupportedError(f"`scheme` {self.scheme.name}: leaves everything in 16 bits", field="scheme")
