"""Which measurements are taken, in which order, and how an interrupted race goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfrot.errors import MismatchError
from dfrot.race.settings import RaceSettings
from dfrot.race.turns import Samples, TimedPrompt, timed_prompts, turns

SETTINGS = RaceSettings(prompts=(32, 4096), cached=(128, 4096), decode=8, repeats=2, long_repeats=1)
KEY = ("model", "dfq", 32, 0)


def test_cases_merge_prompts_and_cached_lengths() -> None:
    fitting, notes = timed_prompts(SETTINGS, 8192)
    assert fitting == [TimedPrompt(32, 0), TimedPrompt(128, 8), TimedPrompt(4096, 8)]
    assert notes == []


def test_what_exceeds_the_context_is_noted() -> None:
    fitting, notes = timed_prompts(SETTINGS, 4096 + 8)  # one token more is generated behind the prompt
    assert [timed.prompt for timed in fitting] == [32, 128]
    assert notes == ["prompts of 4096 tokens exceed the context of 4104"]
    assert len(timed_prompts(SETTINGS, 4096 + 9)[0]) == 3


def test_long_prompts_are_measured_less_often() -> None:
    order = [(turn, timed.prompt) for turn, timed in turns(timed_prompts(SETTINGS, 8192)[0], SETTINGS)]
    assert order == [(-1, 32), (0, 32), (0, 128), (0, 4096), (1, 32), (1, 128)]


def test_samples_outlive_a_race_that_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "out" / "samples.jsonl"
    Samples(file, "digest").add(KEY, 0.5, 0.25)
    with file.open("a") as out:
        out.write('["model", "dfq", 32, 1, 0.')  # killed while it wrote
    again = Samples(file, "digest")
    assert again.values == {KEY: (0.5, 0.25)}
    again.add(("model", "dfq", 32, 1), 0.75, 0.5)
    assert Samples(file, "digest", resume=True).of("model", "dfq", 32) == [(0.5, 0.25), (0.75, 0.5)]
    assert Samples(file, "digest", resume=False).values == {}


def test_samples_of_another_race_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    with pytest.raises(MismatchError, match="nothing to `resume`"):
        Samples(file, "digest", resume=True)
    Samples(file, "digest")
    with pytest.raises(MismatchError, match="another race"):
        Samples(file, "other")


@pytest.mark.parametrize("text", ["", "[]\n", '{"request": "digest"}\n[1]\n', '{"request": "digest"}\n{"a": 1}\n'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    with pytest.raises(MismatchError, match="no file of samples"):
        Samples(file, "digest")
