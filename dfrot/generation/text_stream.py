"""Tokens to text as they come: no half characters, stop strings found and cut off wherever tokens split them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class TextStream:
    """decode: ids -> text. stops: strings that end the text and are not part of it."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(stop for stop in stops if stop)
        self.stopped = False
        self._ids: list[int] = []
        self._begin = self._read = (
            0  # a decoder looks at the token before: read[begin:] twice, with and without the new
        )
        self._held = ""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain after `tokens`: "" while a character is incomplete or a stop string may begin."""
        if self.stopped:
            return ""
        self._ids += tokens
        whole = self.decode(self._ids[self._begin :])
        if whole.endswith(BROKEN):
            return ""
        new = whole[len(self.decode(self._ids[self._begin : self._read])) :]
        self._begin, self._read = self._read, len(self._ids)
        return self._emit(new)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
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
        places = [place for place in map(text.find, self.stops) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
