"""The engine: streamed text is what decoding gives, a draft changes nothing, generations take turns."""

from __future__ import annotations

from pathlib import Path

from dfrot.draft.load import open_engine
from dfrot.generation.engine import Engine, TextRequest


def test_generation_streams_what_decoding_gives(reference_engine: Engine) -> None:
    from dfrot.generation.output import StopCriteria
    from dfrot.generation.plain import plain
    from dfrot.generation.sampling import Sampling

    prompt = reference_engine.encode("def read(self, size):")
    generation = reference_engine.start(TextRequest(prompt, 40))
    pieces = list(generation)
    expected = plain(reference_engine.target, prompt, StopCriteria(40, reference_engine.end_tokens), Sampling())
    assert generation.out.tokens == expected.tokens
    assert "".join(pieces) == reference_engine.decode(expected.tokens)
    assert (generation.finish, generation.usage) == ("length", (len(prompt), 40))
    assert sum(map(bool, pieces)) > 10, "it streams"


def test_stop_strings_are_cut_off(reference_engine: Engine) -> None:
    prompt = reference_engine.encode("def read(self, size):")
    text = "".join(reference_engine.start(TextRequest(prompt, 40)))
    stop = text[25:31]
    generation = reference_engine.start(TextRequest(prompt, 40, stops=(stop,)))
    assert "".join(generation) == text[: text.index(stop)]
    assert generation.finish == "stop"
    assert generation.usage[1] < 40


def test_a_draft_changes_nothing(reference_engine: Engine, reference_draft: Path) -> None:
    from dfrot import reference

    fast = open_engine(reference.path(), reference_draft, (3, 1, 0))
    assert fast.how == "speculative, chain 3"
    prompt = reference_engine.encode("class Reader:")
    for stops in ((), ("self",)):
        plain, drafted = (engine.start(TextRequest(prompt, 40, stops)) for engine in (reference_engine, fast))
        assert "".join(plain) == "".join(drafted)
        assert plain.out.tokens == drafted.out.tokens
        assert plain.finish == drafted.finish
    assert drafted.out.rounds > 0


def test_turns_do_not_mix_texts(reference_engine: Engine) -> None:
    prompts = [reference_engine.encode(text) for text in ("def read(self, size):", "import os\n", "class Reader:")]
    alone = ["".join(reference_engine.start(TextRequest(prompt, 20))) for prompt in prompts]
    generations = [iter(reference_engine.start(TextRequest(prompt, 20))) for prompt in prompts]
    texts = ["", "", ""]
    for _ in range(30):
        for index, generation in enumerate(generations):
            texts[index] += next(generation, "")
    assert texts == alone
