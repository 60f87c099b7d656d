"""Streamed text: pieces add up to the text, characters stay complete, stop strings are found across tokens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dfrot.generation.text_stream import REPLACEMENT, TextStream


def decode(ids: list[int]) -> str:
    """A byte-level decoder: a token is a byte."""
    return bytes(ids).decode("utf-8", errors="replace")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str], group: int) -> None:
    stream, data = TextStream(decode, stops), list(text.encode())
    pieces = []
    for begin in range(0, len(data), group):
        pieces.append(stream.push(data[begin : begin + group]))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    starts = [start for start in map(text.find, stops) if start >= 0]
    # a stop string is noticed when it is complete: of two that overlap, the one that ends first may win
    streamed = "".join(pieces)
    assert text.startswith(streamed)
    assert stream.stopped == bool(starts)
    assert streamed == text if not starts else all(stop not in streamed for stop in stops)
    assert REPLACEMENT in text or all(REPLACEMENT not in piece for piece in pieces)


def test_an_incomplete_character_is_emitted_at_the_end_only() -> None:
    stream = TextStream(decode)
    assert stream.push(list("é".encode())[:1]) == ""
    assert stream.finish() == REPLACEMENT
