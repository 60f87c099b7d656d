"""The entry `quantization_config` of a dfq checkpoint's `config.json`.

Three kinds of folders have it: rotated 16-bit checkpoints that expect online rotations (`scheme` null), packed
ones, and simulated ones (`fake` true: dense weights that lie on the integer grid, activations and KV quantized
while running). A rotated checkpoint without online rotations has no such entry: it is an ordinary checkpoint.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.resets import Reset
from dfrot.quant.scheme import KEY_SHIFTS, MOST_SINKS, NO_SHIFT, QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.rotation.online import OnlineRotations

QUANT_METHOD, FORMAT_VERSION = "dfq", 1


@dataclass(frozen=True)
class DfqConfig:
    """How a checkpoint is rotated and quantized."""

    scheme: QuantScheme | None = None
    """None: rotated 16-bit weights."""
    online: OnlineRotations = OnlineRotations()
    """Rotations at run time."""
    keep: tuple[str, ...] = ("lm_head",)
    """Full names of the linears left in 16 bits, besides embedding and norms."""
    fake: bool = False
    """Simulated: dense weights that lie on the integer grid."""
    sink_tokens: int = 0
    """Leading positions whose activations, keys and values stay in full precision."""
    a_clips: dict[str, float] = field(default_factory=dict)
    """Activation clip ratios that differ from scheme.a_clip, by the linear's full name."""
    a_bits: dict[str, int] = field(default_factory=dict)
    """Activation bits that differ from scheme.a_bits, by the linear's full name."""
    a_scales: dict[str, float] = field(default_factory=dict)
    """Constant scales of NVFP4 inputs, by the linear's full name."""
    resets: tuple[Reset, ...] = ()
    """Massive activations that are replaced by a constant at run time (unrotated models only)."""
    embed: TableScheme = TableScheme()
    """How the embedding is stored."""
    head: TableScheme = TableScheme()
    """How the head is stored if its weight alone is quantized; 16 bits: as `scheme` and `keep` say."""
    key_shift: str = NO_SHIFT
    """What is subtracted from keys before the cache rounds them: `mean` (of calibration keys) or `none`."""

    @property
    def shifts_keys(self) -> bool:
        """Whether keys are shifted, and the checkpoint has the tensors."""
        return self.key_shift != NO_SHIFT

    @property
    def other_inputs(self) -> str:
        """How many linears have other bits of activations than the scheme: `12 linears in 8 bits`; empty for none."""
        counts = Counter(self.a_bits.values())
        return ", ".join(f"{count} linears in {bits} bits" for bits, count in sorted(counts.items()))

    def activations_of(self, name: str) -> QuantScheme:
        """The scheme with the bits and the clip ratio that the input of linear `name` (its full name) has."""
        assert self.scheme is not None
        bits, clip = self.a_bits.get(name, self.scheme.a_bits), self.a_clips.get(name, self.scheme.a_clip)
        return replace(self.scheme, a_bits=bits, a_clip=clip)

    def to_dict(self) -> dict[str, Any]:
        """The entry of `config.json`."""
        more: dict[str, Any] = {"resets": [reset.to_dict() for reset in self.resets]} if self.resets else {}
        for name, table in (("embed", self.embed), ("head", self.head)):
            if table.quantized:
                more[name] = table.to_dict()
        if self.a_bits:
            more["a_bits"] = dict(self.a_bits)
        if self.a_scales:
            more["a_scales"] = dict(self.a_scales)
        if self.shifts_keys:
            more["key_shift"] = self.key_shift
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "scheme": self.scheme.to_dict() if self.scheme else None,
            "online": self.online.to_dict(),
            "keep": list(self.keep),
            "fake": self.fake,
            "sink_tokens": self.sink_tokens,
            "a_clips": dict(self.a_clips),
            **more,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "config.json") -> DfqConfig:
        """Read the entry; `where` names the file in error messages. Raises UnsupportedError for unknown keys and
        versions, InputError for values of a wrong type."""
        known = set(cls().to_dict()) | {"resets", "embed", "head", "key_shift", "a_bits", "a_scales"}
        if unknown := set(value) - known:
            raise UnsupportedError(f"{where}: quantization_config has unknown keys {sorted(unknown)}; update dfq")
        if value.get("format_version") != FORMAT_VERSION:
            raise UnsupportedError(f"{where}: format_version {value.get('format_version')!r} is unknown; update dfq")
        try:
            return cls(
                scheme=QuantScheme.from_dict(value["scheme"]) if value.get("scheme") else None,
                online=OnlineRotations.from_dict(value.get("online")),
                keep=tuple(str(name) for name in value.get("keep", ("lm_head",))),
                fake=_flag(value.get("fake", False)),
                sink_tokens=_sinks(value.get("sink_tokens", 0)),
                a_clips={str(k): float(v) for k, v in value.get("a_clips", {}).items()},
                a_bits={str(k): _whole(v) for k, v in value.get("a_bits", {}).items()},
                a_scales={str(k): float(v) for k, v in value.get("a_scales", {}).items()},
                resets=tuple(Reset.from_dict(reset) for reset in value.get("resets", ())),
                embed=TableScheme.from_dict(value["embed"]) if "embed" in value else TableScheme(),
                head=TableScheme.from_dict(value["head"]) if "head" in value else TableScheme(),
                key_shift=_key_shift(value.get("key_shift", NO_SHIFT)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: quantization_config is malformed ({error}); restore the file") from None

    @classmethod
    def of(cls, config: dict[str, Any], where: str = "config.json") -> DfqConfig | None:
        """The entry of a checkpoint's `config.json`: None when it is an ordinary checkpoint.

        Raises UnsupportedError when another tool quantized it."""
        value = config.get("quantization_config")
        if value is None:
            return None
        method = value.get("quant_method") if isinstance(value, dict) else None
        if method != QUANT_METHOD:
            raise UnsupportedError(f"{where}: already quantized with {method!r}; start from the original checkpoint")
        return cls.from_dict(value, where)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _sinks(value: Any) -> int:
    if not 0 <= _whole(value) <= MOST_SINKS:
        raise ValueError(f"sink_tokens is {value}, between 0 and {MOST_SINKS} are possible")
    return int(value)


def _key_shift(value: Any) -> str:
    if value not in KEY_SHIFTS:
        raise ValueError(f"key_shift {value!r} is none of {', '.join(KEY_SHIFTS)}")
    return str(value)
