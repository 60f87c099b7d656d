"""Where n-grams of a text occurred last, kept up to date token by token: the search of look-up drafting.

A token is appended with one dictionary entry per length of n-gram, and a match is found with at most as many look-ups,
however long the text is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LONGEST_MATCH = 8  # tokens up to which the length of a match is counted; the longer, the likelier it goes on


@dataclass(frozen=True)
class NgramMatch:
    """An earlier occurrence of the newest tokens."""

    position: int
    """Of the token that followed them there."""
    length: int
    """How many of the newest tokens agree, at most LONGEST_MATCH."""


class NgramIndex:
    """The tokens of a text, and of every n-gram of 1 to `longest` tokens where it occurred last."""

    def __init__(self, longest: int, tokens: Iterable[int] = ()) -> None:
        """longest: tokens of the longest n-gram. tokens: the text so far."""
        self.longest = longest
        self.tokens: list[int] = []
        # by length - 1: n-gram -> position of the token behind its last occurrence; the newest n-grams, which nothing
        # follows yet, are not among them
        self._followed_at: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest)]
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            position = len(self.tokens)
            for length in range(1, min(self.longest, position) + 1):
                self._followed_at[length - 1][tuple(self.tokens[position - length :])] = position
            self.tokens.append(token)

    def match(self) -> NgramMatch | None:
        """The last earlier occurrence of the longest n-gram that ends the text; None where even the newest token is
        new."""
        end = len(self.tokens)
        for length in range(min(self.longest, end), 0, -1):
            position = self._followed_at[length - 1].get(tuple(self.tokens[end - length :]))
            if position is not None:
                return NgramMatch(position, self._extended(position, length) if length == self.longest else length)
        return None

    def _extended(self, position: int, length: int) -> int:
        """How many of the newest tokens agree with those before `position`, of which `length` are known to."""
        end = len(self.tokens)
        while (
            length < min(LONGEST_MATCH, position)
            and self.tokens[end - length - 1] == (self.tokens[position - length - 1])
        ):
            length += 1
        return length

    def continuation(self, match: NgramMatch, count: int) -> list[int]:
        """The `count` tokens that followed a match. Where the text ends it is taken to repeat from the match on, so
        that a text of period p is continued by its period."""
        period = len(self.tokens) - match.position
        return [self.tokens[match.position + number % period] for number in range(count)]
