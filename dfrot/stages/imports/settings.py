"""Settings of `dfq import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfrot.settings import check, setting


@dataclass(frozen=True)
class ImportSettings:
    """How a model of another tool is written as a 16-bit checkpoint."""

    dtype: Literal["bf16", "f16", "f32"] | None = setting(
        None,
        metavar="T",
        help="Data type of every weight: bf16, f16 or f32. Default: tensors that are not quantized stay as they are, "
        "the others get the dtype that config.json names.",
    )

    def __post_init__(self) -> None:
        check(self)
