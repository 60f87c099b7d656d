"""Settings of `dfq draft export --check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, dataset_setting, setting

CHECK = "draft check"
"""`kind` of its report."""


@dataclass(frozen=True)
class DraftCheckSettings:
    """How engines are let decode with an exported draft."""

    dataset: str = dataset_setting("stdlib", "Where prompts of `check` come from: a text, or a file of prompts.")
    prompts: int = setting(16, minimum=1, option="--count", help="Prompts of `check`.")
    prompt_tokens: int = setting(64, minimum=2, help="Tokens of a prompt of `check` that is cut from a text.")
    new_tokens: int = setting(128, minimum=2, option="--max-new-tokens", help="New tokens per prompt of `check`.")
    speculative_tokens: int = setting(3, minimum=1, maximum=15, help="Draft tokens per round of `check`.")
    engines: Path = setting(
        Path("build/engines"), metavar="DIR", help="Where `check` finds the environments of engines (make engines)."
    )
    time_limit: float = setting(900.0, above=0, help="Seconds that an engine may take in `check`.")

    def __post_init__(self) -> None:
        check(self)
