"""QuantScheme: how weights, activations and the KV cache are quantized, as pure data."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.field_types import check_types
from dfrot.settings import setting

_FP4_NAME = re.compile(r"(nvfp4|mxfp4)(a16)?(?:kv(\d+))?(-kvsym|-kvasym)?")
_NAME = re.compile(r"w(\d+)a(\d+)(?:kv(\d+))?((?:-(?:g\d+|asym|sym|wasym|wsym|kvasym|kvsym))*)")
FULL = 16
"""The number of bits that means: left in the model's dtype."""
NARROW = 4
"""Bits up to which one level more, or scales that fit their codes, are worth having."""
NO_SHIFT = "none"
KEY_SHIFTS = ("mean", NO_SHIFT)
"""What can be subtracted from keys before the cache rounds them (dfrot/quant/key_shift.py)."""
INTEGERS, NVFP4, MXFP4 = "int", "nvfp4", "mxfp4"
FP4_GROUPS = {NVFP4: 16, MXFP4: 32}
"""Columns that share a scale in the formats of FP4."""
MOST_SINKS = 4096
"""The most leading positions that can stay in full precision: their states are kept beside the cache."""
SINK_TOKENS = 4
"""The default number of them beside 4-bit activations on asymmetric grids: errors of the first tokens reach all others
through attention (docs/results/ingredients.md)."""
MIN_CLIP = 0.1
"""The smallest clip ratio: below it hardly any value would be inside the range."""
LOW_BIT_CLIP = 0.85
"""The default clip ratio of activations of at most 4 bits on asymmetric grids: the values outside the range cost less
than a finer grid gains (docs/results/ingredients.md)."""


def default_clip(bits: int, symmetric: bool) -> float:
    """The clip ratio of activations where none is chosen."""
    return LOW_BIT_CLIP if bits <= 4 and not symmetric else 1.0


def default_sinks(bits: int, kv_bits: int, symmetric: bool) -> int:
    """The number of leading positions that stay exact where none is chosen. bits: of activations, on a grid that is
    symmetric or not; kv_bits: of the cache."""
    narrow = bits <= NARROW or kv_bits <= NARROW
    return SINK_TOKENS if narrow and bits != FULL and not symmetric else 0


@dataclass(frozen=True)
class QuantScheme:
    """Bits and conventions. 16 bits means: left in the model's dtype. The defaults are the setting of the DFRot and
    QuaRot papers (arXiv 2412.00648, 2404.00456)."""

    w_bits: int = 4
    """Bits of weights."""
    a_bits: int = 4
    """Bits of activations, quantized dynamically, per token."""
    kv_bits: int = 4
    """Bits of keys and values, quantized per token and head."""
    w_group: int = 0
    """Columns that share a weight scale; 0: per output channel."""
    w_sym: bool = True
    """Weights are symmetric: no zero code."""
    a_sym: bool = False
    """Activations are symmetric."""
    kv_sym: bool = False
    """Keys and values are symmetric."""
    a_clip: float = 1.0
    """Clip ratio of activations."""
    kv_clip: float = setting(1.0, minimum=MIN_CLIP, maximum=1, help="Clip ratio of keys and values.")

    def __post_init__(self) -> None:
        allowed = {"w": (*range(2, 9), FULL), "a": (*range(2, 9), FULL), "kv": (*range(2, 9), FULL)}
        for kind, bits in (("w", self.w_bits), ("a", self.a_bits), ("kv", self.kv_bits)):
            if bits not in allowed[kind]:
                raise UnsupportedError(f"scheme {self.name}: {kind}{bits} is not supported; use {kind}2..{kind}8 or 16")
        if self.w_group < 0 or (self.w_group and self.w_group % 8) or self.w_group >= 2**31:
            raise UnsupportedError(f"scheme {self.name}: group size {self.w_group} is not a multiple of 8")
        for label, clip in (("activation", self.a_clip), ("KV", self.kv_clip)):
            if not MIN_CLIP <= clip <= 1.0:
                raise UnsupportedError(f"scheme {self.name}: {label} clip ratio {clip} is outside {MIN_CLIP:g}..1")

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Read a name: `w4a4kv4`, `w4a16-g128`, `w3a3kv3-sym` (activations), `-wasym` (weights), `-kvsym` (KV);
        `nvfp4`, `mxfp4`, `nvfp4a16` (weights only), `nvfp4kv4`. Raises UnsupportedError for one that cannot be read, or
        for bits that are not supported."""
        text = text.strip().lower()
        if match := _FP4_NAME.fullmatch(text):
            return Fp4Scheme.of(match[1], match[2] is None, int(match[3] or FULL), match[4] == "-kvsym")
        match = _NAME.fullmatch(text)
        if not match:
            raise UnsupportedError(
                f"`scheme` {text!r}: not understood; write it like w4a4kv4, w4a16-g128, w4a8kv4-sym, w3a3kv3-wasym, "
                "nvfp4 or mxfp4a16",
                field="scheme",
            )
        w_bits, a_bits, kv_bits, tail = match.groups()
        flags = tail.split("-")[1:] if tail else []
        groups = [int(flag[1:]) for flag in flags if flag[0] == "g"]
        return cls(
            w_bits=int(w_bits),
            a_bits=int(a_bits),
            kv_bits=int(kv_bits) if kv_bits else FULL,
            w_group=groups[-1] if groups else 0,
            w_sym="wasym" not in flags,
            a_sym="sym" in flags,
            kv_sym="kvsym" in flags,
        )

    @property
    def number_format(self) -> str:
        """What weights and activations are: `int`, or the name of a format of FP4."""
        return INTEGERS

    def require_integers(self, what: str) -> None:
        """Raise UnsupportedError where this is a scheme of FP4, which `what` cannot take."""
        if self.number_format != INTEGERS:
            raise UnsupportedError(f"`scheme` {self.name}: {what} integer schemes only", field="scheme")

    @property
    def name(self) -> str:
        """The canonical short name; `parse(name)` gives the scheme back (clip ratios aside)."""
        text = f"w{self.w_bits}a{self.a_bits}" + (f"kv{self.kv_bits}" if self.kv_bits != FULL else "")
        for flag, on in (
            (f"g{self.w_group}", self.w_group),
            ("wasym", not self.w_sym),
            ("sym", self.a_sym),
            ("kvsym", self.kv_sym),
        ):
            text += f"-{flag}" if on else ""
        return text

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> QuantScheme:
        """The inverse of `to_dict`. Raises UnsupportedError for an unknown key: ignoring it would change the
        arithmetic; InputError or TypeError for a value of a wrong type."""
        kind = Fp4Scheme if "fp4" in value else QuantScheme
        unknown = set(value) - set(kind.__dataclass_fields__)
        if unknown:
            raise UnsupportedError(f"quantization scheme: unknown keys {sorted(unknown)}; written by a newer dfq?")
        scheme = kind(**value)
        check_types(scheme, "quantization scheme")
        return scheme


@dataclass(frozen=True)
class Fp4Scheme(QuantScheme):
    """Weights, and unless they stay in 16 bits activations, as FP4 (E2M1) in groups of columns that share a scale.

    `nvfp4`: groups of 16 with an E4M3 scale, times one float32 scale of the tensor. `mxfp4`: groups of 32 with a power
    of two (OCP Microscaling Formats 1.0). Scales of activations are computed per token and group; the float32 scale of
    an NVFP4 input is a constant from the calibration, as engines have it. Keys and values are integers."""

    fp4: str = NVFP4
    """Which format: `nvfp4` or `mxfp4`."""

    def __post_init__(self) -> None:
        if self.fp4 not in FP4_GROUPS:
            raise UnsupportedError(f"format {self.fp4!r} of FP4 is unknown; use one of {', '.join(FP4_GROUPS)}")
        super().__post_init__()
        if (self.w_bits, self.w_group, self.w_sym) != (4, FP4_GROUPS[self.fp4], True) or self.a_bits not in (4, FULL):
            raise UnsupportedError(
                f"scheme {self.name}: {self.fp4} has weights of 4 bits in groups of {FP4_GROUPS[self.fp4]}, without "
                f"zero codes, and activations of 4 or {FULL} bits"
            )
        if self.a_sym != (self.a_bits != FULL):
            raise UnsupportedError(f"scheme {self.name}: activations of {self.fp4} are symmetric")
        if self.a_clip != 1:
            raise UnsupportedError(f"scheme {self.name}: every group of activations has its own scale, none is clipped")

    @classmethod
    def of(cls, fp4: str, activations: bool, kv_bits: int = FULL, kv_sym: bool = False) -> Fp4Scheme:
        """The scheme of a format. activations: whether these are FP4 too."""
        a_bits = 4 if activations else FULL
        return cls(4, a_bits, kv_bits, FP4_GROUPS[fp4], True, activations, kv_sym, fp4=fp4)

    @property
    def number_format(self) -> str:
        """`nvfp4` or `mxfp4`."""
        return self.fp4

    @property
    def name(self) -> str:
        """The canonical short name, as `QuantScheme.parse` reads it."""
        text = self.fp4 + ("a16" if self.a_bits == FULL else "")
        text += f"kv{self.kv_bits}" if self.kv_bits != FULL else ""
        return text + ("-kvsym" if self.kv_sym else "")
