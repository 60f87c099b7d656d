"""When a generation ends, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dfrot.errors import InputError
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""`code` of the error for prompts and new tokens that do not fit the context together."""
# Tokens decoded beyond the length of the longest stop string, because the first ones may be parts of characters: a
# UTF-8 character has at most four bytes, and a token has at least one.
BYTES_OF_A_CHARACTER = 4


@dataclass(frozen=True)
class StopCriteria:
    """When a generation ends."""

    max_new_tokens: int = 128
    """New tokens; exact, unless something else ends the text earlier."""
    eos: frozenset[int] = frozenset()
    """Token ids that end the text. They stay in the output."""
    stops: tuple[str, ...] = ()
    """Stop strings. The token that completes one is the last of the output."""
    decode: Callable[[list[int]], str] | None = None
    """Token ids -> text; needed for `stops`."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` {self.max_new_tokens}: at least 1 is needed", field="max_new_tokens")
        if self.stops and self.decode is None:
            raise InputError("stop strings need a tokenizer; give the checkpoint's folder")

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of `tokens` (all of them new) is the last token of the output."""
        if len(tokens) >= self.max_new_tokens or tokens[-1] in self.eos:
            return True
        if not self.stops or self.decode is None:
            return False
        # a token has at least one byte, so a stop string covers at most as many tokens as it has bytes
        tail = self.decode(tokens[-(max(len(stop.encode()) for stop in self.stops) + BYTES_OF_A_CHARACTER) :])
        return any(stop in tail for stop in self.stops)


@dataclass
class GenerationOutput:
    """The tokens of a generation and what producing them took."""

    tokens: list[int] = field(default_factory=list)
    """New tokens, without the prompt."""
    rounds: int = 0
    """Verify passes; in plain decoding, steps."""
    emitted: int = 0
    """Tokens that the rounds produced: without the first token, which the prompt's pass gives, and without tokens that
    were cut off behind the end."""
    accepted: list[int] = field(default_factory=list)
    """Accepted draft tokens of every speculative round."""
    nodes: int = 0
    """Nodes of all verified trees, roots included."""
    forced: int = 0
    """Draft tokens accepted only because of rounding (see `VerifyResult.forced`)."""
    seconds: float = 0.0
    """Duration of everything behind the prompt's pass."""
    draft_seconds: float = 0.0
    """The part of `seconds` spent in the draft."""
    verify_seconds: float = 0.0
    """The part of `seconds` spent in the target."""

    @property
    def tau(self) -> float:
        """Acceptance length: tokens per verify pass, the bonus token included."""
        return self.emitted / self.rounds if self.rounds else 0.0


def check_prompt(target: Target, prompt: Sequence[int], stop: StopCriteria, images: ImageInputs | None) -> None:
    """Raise InputError for a prompt that is empty, holds unknown token ids, or leaves no room for the new tokens."""
    if not prompt:
        raise InputError("the prompt holds no token; give some text")
    if images is None and (max(prompt) >= target.vocab_size or min(prompt) < 0):
        raise InputError(f"the prompt holds token id {max(prompt)}, the vocabulary ends at {target.vocab_size}")
    if len(prompt) + stop.max_new_tokens > target.max_length:
        raise InputError(
            f"{len(prompt)} prompt tokens and `max_new_tokens` {stop.max_new_tokens} exceed the target's context of "
            f"{target.max_length}; shorten one of them",
            field="max_new_tokens",
            limit=target.max_length,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
