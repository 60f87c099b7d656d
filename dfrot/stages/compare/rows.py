"""The rows of `dfq compare`, as data: what each asks of the stages.

A new method is one entry of ROWS, and one of ROTATIONS where it needs another rotated checkpoint. Names, options,
help, sharing of rotations and reuse of measurements follow from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfrot.quant.scheme import NO_SHIFT
from dfrot.quant.table import TableScheme
from dfrot.stages.rotate.settings import NONE, OUTPUTS
from dfrot.stages.rotate.settings import ROWS as ROWS_OBJECTIVE

TRANSFORMS = ("up-down", "head-center", "head-whiten", "key-scale")
NO_ROTATION = "none"


def _rotation(
    method: str, align: bool = False, transform: tuple[str, ...] = (NONE,), objective: str = ROWS_OBJECTIVE
) -> Mapping[str, Any]:
    return {"method": method, "align": align, "transform": transform, "objective": objective}


ROTATIONS: dict[str, Mapping[str, Any]] = {
    NO_ROTATION: {},
    "orthogonal": _rotation("orthogonal"),
    "hadamard": _rotation("hadamard"),
    "hadamard-align": _rotation("hadamard", align=True),
    "hadamard-up-down": _rotation("hadamard", transform=("up-down",)),
    "hadamard-head-whiten": _rotation("hadamard", transform=("head-whiten",)),
    "hadamard-key-scale": _rotation("hadamard", transform=("key-scale",)),
    "hadamard-transforms": _rotation("hadamard", transform=TRANSFORMS),
    "hadamard-default": {"method": "hadamard"},
    "dfrot": _rotation("dfrot"),
    "dfrot-outputs": _rotation("dfrot", objective=OUTPUTS),
    "dfrot-transforms": _rotation("dfrot", transform=TRANSFORMS),
    "dfrot-default": {},
}
"""Name -> fields of RotateSettings, in the order of work. NO_ROTATION is the source checkpoint itself."""


@dataclass(frozen=True)
class Row:
    """One way to make a quantized checkpoint."""

    label: str
    """Its name in tables."""
    rotation: str
    """Its name in ROTATIONS."""
    quantize: Mapping[str, Any]
    """Fields of QuantizeSettings, without the scheme."""
    scheme: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the scheme that this row changes."""
    calibrate: Mapping[str, Any] = field(default_factory=dict)
    """Fields of CalibrateSettings, where the row is calibrated."""
    tuned: bool = False
    """Whether `dfq tune` follows."""
    against: tuple[str, ...] = ()
    """Rows, by name, from which the report states the difference."""

    @property
    def calibrated(self) -> bool:
        """Whether the row reads calibration text, drawn at random."""
        return self.quantize["algorithm"] != "rtn" or self.quantize.get("a_clip") == "auto"

    @property
    def random(self) -> bool:
        """Whether two seeds give two checkpoints. Where not, the row is made once."""
        return self.rotation != NO_ROTATION or self.calibrated or self.tuned


PLAIN = {"a_clip": 1.0, "sink_tokens": 0, "key_shift": NO_SHIFT}
"""Fields of QuantizeSettings without what the default recipe adds."""
_RTN, _GPTQ = {"algorithm": "rtn", **PLAIN}, {"algorithm": "gptq", **PLAIN}
TUNED = "tuned-dfrot"
ROWS: dict[str, Row] = {
    "rtn-none": Row("RTN", NO_ROTATION, _RTN),
    "rtn-orthogonal": Row("RTN + orthogonal", "orthogonal", _RTN),
    "rtn-hadamard": Row("RTN + Hadamard", "hadamard", _RTN, against=("rtn-orthogonal",)),
    "rtn-dfrot": Row("RTN + DFRot", "dfrot", _RTN, against=("rtn-orthogonal", "rtn-hadamard")),
    "gptq-none": Row("GPTQ", NO_ROTATION, _GPTQ, against=("rtn-none",)),
    "gptq-orthogonal": Row("GPTQ + orthogonal", "orthogonal", _GPTQ, against=("rtn-orthogonal",)),
    "gptq-hadamard": Row("GPTQ + Hadamard", "hadamard", _GPTQ),
    "rtn-dfrot-outputs": Row("RTN + DFRot for outputs", "dfrot-outputs", _RTN, against=("rtn-hadamard", "rtn-dfrot")),
    "gptq-dfrot-outputs": Row(
        "GPTQ + DFRot for outputs", "dfrot-outputs", _GPTQ, against=("gptq-hadamard", "gptq-dfrot")
    ),
    "gptq-dfrot": Row("GPTQ + DFRot", "dfrot", _GPTQ, against=("gptq-hadamard",)),
    TUNED: Row("GPTQ + DFRot, tuned", "dfrot", _GPTQ, tuned=True, against=("gptq-dfrot",)),
    "gptq-hadamard-plain": Row(
        "GPTQ + Hadamard, no compensation", "hadamard", {**_GPTQ, "compensate": 0.0}, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-natural": Row(
        "GPTQ + Hadamard, natural order", "hadamard", {**_GPTQ, "act_order": False}, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-clip": Row(
        "GPTQ + Hadamard, activations clipped",
        "hadamard",
        {**_GPTQ, "a_clip": "auto"},
        calibrate={"statistics": True},
        against=("gptq-hadamard",),
    ),
    "gptq-hadamard-0.85": Row(
        "GPTQ + Hadamard, activations clipped at 0.85",
        "hadamard",
        {**_GPTQ, "a_clip": 0.85},
        against=("gptq-hadamard",),
    ),
    "gptq-hadamard-sinks": Row(
        "GPTQ + Hadamard, 4 sink tokens", "hadamard", {**_GPTQ, "sink_tokens": 4}, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-groups": Row(
        "GPTQ + Hadamard, groups of 32", "hadamard", _GPTQ, scheme={"w_group": 32}, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-ends": Row(
        "GPTQ + Hadamard, embedding and head in 8 bits",
        "hadamard",
        {**_GPTQ, "embed": TableScheme(8), "head": TableScheme(8)},
        against=("gptq-hadamard",),
    ),
    "gptq-hadamard-up-down": Row("GPTQ + Hadamard + up-down", "hadamard-up-down", _GPTQ, against=("gptq-hadamard",)),
    "gptq-hadamard-head-whiten": Row(
        "GPTQ + Hadamard + head-whiten", "hadamard-head-whiten", _GPTQ, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-key-scale": Row(
        "GPTQ + Hadamard + key-scale", "hadamard-key-scale", _GPTQ, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-transforms": Row(
        "GPTQ + Hadamard + transforms", "hadamard-transforms", _GPTQ, against=("gptq-hadamard",)
    ),
    "gptq-hadamard-align": Row("GPTQ + Hadamard, aligned", "hadamard-align", _GPTQ, against=("gptq-hadamard",)),
    "gptq-hadamard-default": Row(
        "GPTQ + Hadamard, default recipe", "hadamard-default", {"algorithm": "gptq"}, against=("gptq-hadamard",)
    ),
    "gptq-dfrot-default": Row(
        "GPTQ + DFRot, default recipe",
        "dfrot-default",
        {"algorithm": "gptq"},
        against=("gptq-dfrot", "gptq-hadamard-default"),
    ),
    "gptq-dfrot-transforms": Row(
        "GPTQ + DFRot + transforms", "dfrot-transforms", _GPTQ, against=("gptq-dfrot", "gptq-hadamard-transforms")
    ),
}
"""Name -> row, in the order of the table."""
STANDARD = ("rtn-none", "rtn-orthogonal", "rtn-hadamard", "rtn-dfrot", "gptq-hadamard", "gptq-dfrot")
"""The rows that are measured unless others are asked for."""
