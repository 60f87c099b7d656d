"""Tokens to text piece by piece: no incomplete characters, and stop strings cut off however tokens split them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a tokenizer writes for bytes that are no complete character yet


class TextStream:
    """Decodes the tokens of one text as they arrive."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        """decode: token ids -> text. stops: strings that end the text and are not part of it."""
        self.decode, self.stops = decode, tuple(stop for stop in stops if stop)
        self.stopped = False
        self._ids: list[int] = []
        # How a token is written may depend on the tokens before it. So the new text is the difference between two
        # decodings from `_begin`: with the tokens behind `_read`, and without.
        self._begin = self._read = 0
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain after `tokens`: "" while a character is incomplete or a stop string may begin."""
        if self.stopped:
            return ""
        self._ids += tokens
        decoded = self.decode(self._ids[self._begin :])
        if decoded.endswith(REPLACEMENT):
            return ""
        new = decoded[len(self.decode(self._ids[self._begin : self._read])) :]
        self._begin, self._read = self._read, len(self._ids)
        return self._emit(new)

    def finish(self) -> str:
        """The remaining text, when no more tokens come."""
        if self.stopped:
            return ""
        new = self.decode(self._ids[self._begin :])[len(self.decode(self._ids[self._begin : self._read])) :]
        self._begin = self._read = len(self._ids)
        text = self._emit(new)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _emit(self, new: str) -> str:
        text = self._held + new
        matches = [start for start in map(text.find, self.stops) if start >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return text[: min(matches)]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
