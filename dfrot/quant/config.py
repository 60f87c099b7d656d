"""What `config.json` says of a dfq checkpoint, under `quantization_config`.

Three kinds of folders carry it: rotated 16-bit checkpoints that expect online rotations (`scheme` null), packed
ones, and simulated ones (`fake` true: dense weights that lie on the integer grid, activations and KV quantized
while running). A rotated checkpoint without online rotations has no such entry: it is an ordinary checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.resets import Reset
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.online import OnlineRotations

QUANT_METHOD, FORMAT_VERSION = "dfq", 1


@dataclass(frozen=True)
class DfqConfig:
    """scheme: None for rotated 16-bit weights. keep: full module names left in 16 bits (besides embedding and
    norms). sink_tokens: leading positions whose activations and KV stay in full precision. a_clips: per tap
    full-name activation clip ratios that differ from scheme.a_clip (keyed by linear's full module name). resets:
    massive activations that the runtime replaces by a constant (unrotated models only)."""

    scheme: QuantScheme | None = None
    online: OnlineRotations = OnlineRotations()
    keep: tuple[str, ...] = ("lm_head",)
    fake: bool = False
    sink_tokens: int = 0
    a_clips: dict[str, float] = field(default_factory=dict)
    resets: tuple[Reset, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        resets = {"resets": [reset.to_dict() for reset in self.resets]} if self.resets else {}
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "scheme": self.scheme.to_dict() if self.scheme else None,
            "online": self.online.to_dict(),
            "keep": list(self.keep),
            "fake": self.fake,
            "sink_tokens": self.sink_tokens,
            "a_clips": dict(self.a_clips),
            **resets,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "config.json") -> DfqConfig:
        """Strict: unknown keys, versions and types are refused."""
        known = set(cls().to_dict()) | {"resets"}
        if unknown := set(value) - known:
            raise UnsupportedError(f"{where}: quantization_config has unknown keys {sorted(unknown)}; update dfq")
        if value.get("format_version") != FORMAT_VERSION:
            raise UnsupportedError(f"{where}: format_version {value.get('format_version')!r} is unknown; update dfq")
        try:
            return cls(
                scheme=QuantScheme.from_dict(value["scheme"]) if value.get("scheme") else None,
                online=OnlineRotations.from_dict(value.get("online")),
                keep=tuple(str(name) for name in value.get("keep", ("lm_head",))),
                fake=bool(value.get("fake", False)),
                sink_tokens=int(value.get("sink_tokens", 0)),
                a_clips={str(k): float(v) for k, v in value.get("a_clips", {}).items()},
                resets=tuple(Reset.from_dict(one) for one in value.get("resets", ())),
            )
        except (TypeError, ValueError, AttributeError) as error:
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
