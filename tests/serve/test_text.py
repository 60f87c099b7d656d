"""Text as it comes: pieces add up to the whole, characters stay whole, stop strings are found across tokens."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dfrot.draft.load import open_engine
from dfrot.generation.engine import Engine, TextRequest
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
    places = [place for place in map(text.find, stops) if place >= 0]
    # a stop string is noticed when it is complete: of two that overlap the one that ends first may win
    told = "".join(pieces)
    assert text.startswith(told)
    assert stream.stopped == bool(places)
    assert told == text if not places else all(stop not in told for stop in stops)
    assert REPLACEMENT in text or all(REPLACEMENT not in piece for piece in pieces)


def test_an_unfinished_character_is_told_at_the_end_only() -> None:
    stream = TextStream(decode)
    assert stream.push(list("é".encode())[:1]) == ""
    assert stream.finish() == REPLACEMENT


def test_generation_streams_what_decoding_gives(engine: Engine) -> None:
    from dfrot.generation.output import StopCriteria
    from dfrot.generation.plain import plain
    from dfrot.generation.sampling import Sampling

    prompt = engine.encode("def read(self, size):")
    job = engine.start(TextRequest(prompt, 40))
    pieces = list(job)
    expected = plain(engine.target, prompt, StopCriteria(40, engine.end_tokens), Sampling())
    assert job.out.tokens == expected.tokens
    assert "".join(pieces) == engine.decode(expected.tokens)
    assert (job.finish, job.usage) == ("length", (len(prompt), 40))
    assert sum(map(bool, pieces)) > 10, "it streams"


def test_stop_strings_are_cut_off(engine: Engine) -> None:
    prompt = engine.encode("def read(self, size):")
    whole = "".join(engine.start(TextRequest(prompt, 40)))
    stop = whole[25:31]
    job = engine.start(TextRequest(prompt, 40, stops=(stop,)))
    assert "".join(job) == whole[: whole.index(stop)]
    assert job.finish == "stop"
    assert job.usage[1] < 40


def test_a_draft_changes_nothing(engine: Engine, draft: Any) -> None:
    from dfrot import reference

    fast = open_engine(reference.path(), draft, (3, 1, 0))
    assert fast.how == "speculative, chain 3"
    prompt = engine.encode("class Reader:")
    for stops in ((), ("self",)):
        plain, drafted = (one.start(TextRequest(prompt, 40, stops)) for one in (engine, fast))
        assert "".join(plain) == "".join(drafted)
        assert plain.out.tokens == drafted.out.tokens
        assert plain.finish == drafted.finish
    assert drafted.out.rounds > 0


def test_turns_do_not_mix_texts(engine: Engine) -> None:
    prompts = [engine.encode(text) for text in ("def read(self, size):", "import os\n", "class Reader:")]
    alone = ["".join(engine.start(TextRequest(prompt, 20))) for prompt in prompts]
    jobs = [iter(engine.start(TextRequest(prompt, 20))) for prompt in prompts]
    told = ["", "", ""]
    for _ in range(30):
        for place, job in enumerate(jobs):
            told[place] += next(job, "")
    assert told == alone
