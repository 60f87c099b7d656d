"""The index of n-grams finds what a search of the whole text finds."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from dfrot.generation.speculation.ngram_index import LONGEST_MATCH, NgramIndex, NgramMatch


def searched(tokens: list[int], longest: int) -> NgramMatch | None:
    """The last earlier occurrence of the longest n-gram at the end, by comparing everything."""
    for length in range(min(longest, len(tokens)), 0, -1):
        for position in range(len(tokens) - 1, length - 1, -1):
            if tokens[position - length : position] == tokens[-length:]:
                agreeing = length
                while agreeing < min(LONGEST_MATCH, position) and length == longest:
                    if tokens[position - agreeing - 1] != tokens[-agreeing - 1]:
                        break
                    agreeing += 1
                return NgramMatch(position, agreeing)
    return None


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5), st.integers(0, 60))
def test_matches_are_those_of_a_search(tokens: list[int], longest: int, cut: int) -> None:
    index = NgramIndex(longest, tokens[:cut])
    for end in range(cut, len(tokens) + 1):
        if end > cut:
            index.extend(tokens[end - 1 : end])
        assert index.tokens == tokens[:end]
        assert index.match() == searched(tokens[:end], longest)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(1, 4), st.integers(0, 20))
def test_continuations_repeat_the_text(tokens: list[int], longest: int, count: int) -> None:
    index = NgramIndex(longest, tokens)
    match = index.match()
    if match is None:
        return
    expected = list(tokens)  # copied token by token, the copies included
    for position in range(match.position, match.position + count):
        expected.append(expected[position])
    assert index.continuation(match, count) == expected[len(tokens) :]


def test_periodic_texts() -> None:
    for period in ([7], [7, 8], [1, 2, 3]):
        index = NgramIndex(4, period * 20)
        match = index.match()
        assert match is not None
        assert match.length == LONGEST_MATCH
        assert index.continuation(match, 9) == (period * 9)[:9]
    assert NgramIndex(4).match() is None
    assert NgramIndex(4, [5]).match() is None
    assert NgramIndex(4, [5, 6, 7]).match() is None


def test_a_long_text_costs_no_more_per_token() -> None:
    """The work of appending and matching does not grow with the text: 40 times the tokens, about 40 times the time."""

    def seconds(count: int) -> float:
        tokens = [(n * n + n // 7) % 997 for n in range(count)]
        begin = time.perf_counter()
        index = NgramIndex(4)
        for token in tokens:
            index.extend((token,))
            index.match()
        return time.perf_counter() - begin

    short = min(seconds(2_000) for _ in range(3))
    assert min(seconds(80_000) for _ in range(2)) < 40 * short * 4
