"""QuantScheme: how weights, activations and the KV cache are quantized, as pure data."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.settings import setting

_NAME = re.compile(r"w(\d+)a(\d+)(?:kv(\d+))?((?:-(?:g\d+|asym|sym|wasym|wsym|kvasym|kvsym))*)")
FULL = 16
"""The number of bits that means: left in the model's dtype."""
NO_SHIFT = "none"
KEY_SHIFTS = ("mean", NO_SHIFT)
"""What can be subtracted from keys before the cache rounds them (dfrot/quant/key_shift.py)."""
MIN_CLIP = 0.1
"""The smallest clip ratio: below it hardly any value would be inside the range."""
LOW_BIT_CLIP = 0.85
"""The default clip ratio of activations of at most 4 bits on asymmetric grids: the values outside the range cost less
than a finer grid gains (docs/results/ingredients.md)."""


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
        if self.w_group < 0 or (self.w_group and self.w_group % 8):
            raise UnsupportedError(f"scheme {self.name}: group size {self.w_group} is not a multiple of 8")
        for label, clip in (("activation", self.a_clip), ("KV", self.kv_clip)):
            if not MIN_CLIP <= clip <= 1.0:
                raise UnsupportedError(f"scheme {self.name}: {label} clip ratio {clip} is outside {MIN_CLIP:g}..1")

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Read a name: `w4a4kv4`, `w4a16-g128`, `w3a3kv3-sym` (activations), `-wasym` (weights), `-kvsym` (KV). Raises
        UnsupportedError for one that cannot be read, or for bits that are not supported."""
        match = _NAME.fullmatch(text.strip().lower())
        if not match:
            raise UnsupportedError(
                f"`scheme` {text!r}: not understood; write it like w4a4kv4, w4a16-g128, w4a8kv4-sym or w3a3kv3-wasym",
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
        arithmetic."""
        unknown = set(value) - set(cls.__dataclass_fields__)
        if unknown:
            raise UnsupportedError(f"quantization scheme: unknown keys {sorted(unknown)}; written by a newer dfq?")
        return cls(**value)
