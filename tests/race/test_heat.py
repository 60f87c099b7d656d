"""A race of fake engines: who is wrong is named, who fails leaves, the others go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dfrot.progress import silent
from dfrot.race.field import Contender
from dfrot.race.heat import Heat, Tokens
from dfrot.race.settings import RaceSettings
from dfrot.race.turns import Samples, timed_prompts
from tests.race.conftest import MakeContender

SETTINGS = RaceSettings(
    prompts=(4,), cached=(8,), decode=3, repeats=2, seqlen=8, windows=1, timeout=20.0, max_ratio=1.5
)
TOKENS = Tokens([list(range(8))], list(range(8)))
REFERENCE = "torch bf16"


@pytest.fixture
def heats() -> Iterator[list[Heat]]:
    made: list[Heat] = []
    yield made
    for heat in made:
        heat.close()


def race(
    heats: list[Heat], contenders: Sequence[Contender], samples: Samples | None = None, settings: Any = SETTINGS
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    samples = samples or Samples()
    heat = Heat("model", contenders, timed_prompts(settings, 64)[0], TOKENS, settings, samples, 1, silent)
    heats.append(heat)
    results = heat.run()
    return {row["name"]: row for row in results}, heat.failed


def test_the_fastest_sound_contender_wins(heats: list[Heat], fake: MakeContender) -> None:
    contenders = [
        fake(REFERENCE, seconds=0.02),
        fake("slow", seconds=0.03, loss=2.1),
        fake("wrong", loss=2.5),  # fast, and e^0.5 times the perplexity
    ]
    rows, failed = race(heats, contenders)
    assert not failed
    assert rows[REFERENCE]["wins"] == ["first 4", "first 8", "decode 8"]
    assert rows["wrong"]["wins"] == rows["slow"]["wins"] == []
    assert rows["wrong"]["fault"] == "perplexity x 1.65"
    assert rows["slow"]["fault"] is None
    assert rows["slow"]["ratio"] == pytest.approx(math.exp(0.1))
    assert rows["slow"]["decode"]["8"]["samples"] == 2
    assert rows["slow"]["decode"]["8"]["median"] >= 0.03
    assert "4" not in rows["slow"]["decode"]


def test_wrong_tokens_are_found_where_the_perplexity_is_right(heats: list[Heat], fake: MakeContender) -> None:
    rows, _ = race(heats, [fake(REFERENCE, unlikely=99), fake("babbles", token=99)])
    assert rows["babbles"]["ratio"] == 1
    assert "its text has perplexity" in rows["babbles"]["fault"]
    assert rows["babbles"]["wins"] == []
    assert rows[REFERENCE]["fault"] is None


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"refuses": True}, "ValueError: this model is refused"),
        ({"dies": 4}, "the process ended (code -6): out of some resource"),
        ({"token": "seven"}, "ValueError: invalid literal"),
        ({"loss": math.nan}, "answered loss = nan, which is no number"),
    ],
)
def test_who_fails_leaves_the_race(
    heats: list[Heat], fake: MakeContender, behaviour: dict[str, Any], reason: str
) -> None:
    rows, failed = race(heats, [fake("fails", **behaviour), fake(REFERENCE)])
    assert list(rows) == [REFERENCE]
    assert reason in failed["fails"]
    assert not failed["fails"].startswith("fails: ")


def test_who_hangs_leaves_the_race(heats: list[Heat], fake: MakeContender) -> None:
    from dataclasses import replace

    rows, failed = race(heats, [fake("hangs", hangs=4), fake(REFERENCE)], settings=replace(SETTINGS, timeout=2.0))
    assert list(rows) == [REFERENCE]
    assert failed == {"hangs": "no answer to generate within 2 s"}


def test_measurements_that_are_there_are_not_repeated(heats: list[Heat], fake: MakeContender) -> None:
    samples = Samples()
    samples.add(("model", "x", 4, 0), 7.0, 0.0)
    rows, _ = race(heats, [fake("x")], samples)
    assert rows["x"]["first"]["4"]["samples"] == 2
    assert max(first for first, _ in samples.of("model", "x", 4)) == 7.0
    assert rows["x"]["ratio"] is None  # nothing in 16 bits ran


def test_a_race_that_was_cut_opens_only_who_is_not_done(heats: list[Heat], fake: MakeContender) -> None:
    samples = Samples()
    done, judge = fake("done", loss=2.2), fake(REFERENCE)
    before, _ = race(heats, [done, judge], samples)
    heats[-1].close()
    Path(done.path).unlink()  # what is done needs no process
    rows, failed = race(heats, [done, judge, fake("new")], samples)
    assert not failed
    assert {**rows["done"], "wins": []} == {**before["done"], "wins": [], "bytes_on_disk": 0}
    assert rows["new"]["text_perplexity"] is not None  # the judge ran again
    Path(judge.path).unlink()
    assert race(heats, [done, judge], samples)[0].keys() == {"done", REFERENCE}
