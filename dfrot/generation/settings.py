"""Settings of generated text, as `dfq generate` takes them, and of drafting without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, setting
from dfrot.vision.settings import KEEP


@dataclass(frozen=True)
class NgramSettings:
    """Look-up drafting: draft tokens come from the text itself, from what followed its newest tokens earlier."""

    longest: int = setting(
        4,
        minimum=1,
        maximum=16,
        option="--ngram-length",
        help="With draft ngram: the longest n-gram that is looked up; shorter ones follow, down to one token.",
    )
    most: int = setting(
        10, minimum=1, maximum=15, option="--ngram-tokens", help="With draft ngram: the most draft tokens of a round."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class GenerateSettings:
    """What to generate: the prompt and where the text ends. How tokens are chosen is `Sampling`."""

    prompt: str = setting(metavar="TEXT", help="The text to continue; - reads it from stdin.")
    chat: bool = setting(False, help="Treat the prompt as a message: put it into the model's chat template.")
    system: str | None = setting(None, metavar="TEXT", help="The system message, with `chat`.")
    images: tuple[Path, ...] = setting(
        (),
        option="--image",
        metavar="FILE",
        help="An image placed before the prompt, which becomes a message in the chat template; repeatable. For VLMs.",
    )
    keep: float = setting(
        KEEP, minimum=0, maximum=1, option="--keep-visual", help="Share of image tokens that the draft sees."
    )
    max_new_tokens: int = setting(128, minimum=1, help="The most new tokens.")
    stop: tuple[str, ...] = setting(
        (), metavar="TEXT", help="End before this text, which is not part of the result; repeatable."
    )
    ignore_eos: bool = setting(False, help="Continue after the end-of-text token.")
    force: bool = setting(False, help="Also accept a draft of another target.")

    def __post_init__(self) -> None:
        check(self)
