"""output"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dfrot.errors import InputError
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


@dataclass(frozen=True)
class StopCriteria:
    """max_new_tokens: exact, unless something stops earlier. eos: ids that end (and stay in the output). stops:
    strings; the token that completes one is the last. decode: ids -> text, needed for `stops`."""

    max_new_tokens: int = 128
    eos: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: at least 1 is needed")
        if self.stops and self.decode is None:
            raise InputError("stop strings need a tokenizer; give the checkpoint's folder")

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of `tokens` (all of them new) is the last one of the output."""
        if len(tokens) >= self.max_new_tokens or tokens[-1] in self.eos:
            return True
        if not self.stops or self.decode is None:
            return False
        # a token adds at least one byte, so no stop string reaches further back than its length
        tail = self.decode(tokens[-(max(len(stop.encode()) for stop in self.stops) + 4) :])
        return any(stop in tail for stop in self.stops)


@dataclass
class GenerationOutput:
    """tokens: without the prompt. rounds, accepted: verify passes, and how many guesses each accepted. emitted: tokens
    that the passes gave (the first token and what was cut off not counted). Seconds: of the whole decoding behind the
    prompt, of it in the draft and in the target."""

    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    emitted: int = 0
    accepted: list[int] = field(default_factory=list)
    nodes: int = 0
    forced: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def tau(self) -> float:
        """Acceptance length: tokens per verify pass, the bonus counted."""
        return self.emitted / self.rounds if self.rounds else 0.0


def _check(target: Target, prompt: Sequence[int], limits: StopCriteria, images: ImageInputs | None) -> None:
    if not prompt:
        raise InputError("the prompt holds no token; give some text")
    if images is None and (max(prompt) >= target.vocab_size or min(prompt) < 0):
        raise InputError(f"the prompt holds token id {max(prompt)}, the vocabulary ends at {target.vocab_size}")
    if len(prompt) + limits.max_new_tokens > target.max_length:
        raise InputError(
            f"{len(prompt)} prompt tokens and --max-new-tokens {limits.max_new_tokens} exceed the target's context of "
            f"{target.max_length}; shorten one of them"
        )
