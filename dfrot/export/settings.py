"""Settings of `dfq export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfrot.quant.scheme import QuantScheme


@dataclass(frozen=True)
class ExportSettings:
    """As `dfrot.export.run.export`: scheme None writes the checkpoint's own, dtype is gguf's."""

    to: Literal["compressed-tensors", "gguf", "gptq"]
    scheme: QuantScheme | None = None
    dtype: Literal["bf16", "f16", "f32"] | None = None
    online_r4: bool = False
