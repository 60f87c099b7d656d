"""Settings of `dfq export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfrot.quant.scheme import QuantScheme
from dfrot.settings import check, dataset_setting, setting


@dataclass(frozen=True)
class ExportSettings:
    """What a checkpoint is exported to."""

    to: Literal["compressed-tensors", "gguf", "gptq"] = setting(
        metavar="FORMAT", help="The format: compressed-tensors, gguf or gptq."
    )
    scheme: QuantScheme | None = setting(
        None,
        metavar="S",
        help="Write the same weights under this scheme, for instance without activation bits. Default: the "
        "checkpoint's own.",
    )
    dtype: Literal["bf16", "f16", "f32"] | None = setting(
        None,
        metavar="T",
        help="gguf: data type of tensors that are not quantized, bf16, f16 or f32. Default: the source's.",
    )
    online_r4: bool = setting(False, help="compressed-tensors: write R4 as an online transform, which only vLLM reads.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExportForSettings:
    """The engine that is to serve an export."""

    engine: Literal["vllm", "sglang", "llama.cpp", "transformers"] | None = setting(
        None,
        option="--for",
        choices=("vllm", "sglang", "llama.cpp", "transformers"),
        help="Choose the format that this engine serves best, so that none is given; say what it serves otherwise than "
        "the checkpoint, and write the command that serves it into README.md.",
    )
    force: bool = setting(False, help="With `engine`: write what it is known to refuse, too.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExportCheckSettings:
    """How exported checkpoints are compared with dfq's own results."""

    seqlen: int = setting(256, minimum=2, help="Tokens of a window of `check`.")
    windows: int = setting(4, minimum=1, help="Windows of `check`.")
    dataset: str = dataset_setting("wikitext2", "Text of `check`.")
    engines: Path = setting(
        Path("build/engines"), metavar="DIR", help="Where `check` finds the environments of engines (make engines)."
    )
    new_tokens: int = setting(16, minimum=1, maximum=1024, help="Greedy tokens that an engine writes in `check`.")
    time_limit: float = setting(600.0, above=0, help="Seconds that an engine may take in `check`.")

    def __post_init__(self) -> None:
        check(self)
