from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from dfrot.errors import ResourceError
from dfrot.ranks import watch
from dfrot.ranks.watch import RankWatch


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Three ranks with one store, signs every 20 ms, heard for a second."""
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(watch, "LISTEN", 1.0)
    store = HashStore()
    ranks = [RankWatch(store, rank, 3, timeout=2.0) for rank in range(3)]
    yield ranks
    for rank in ranks:
        rank.end()


def test_a_rank_without_signs_is_named(watches: list[Any]) -> None:
    watches[2].end()
    lost = watches[0].missing(RuntimeError("connection closed"))
    assert str(lost).startswith("rank 2 of 3 died")
    assert "any number of ranks" in str(lost)
    assert lost.code == "rank_lost"


def test_where_all_give_signs_this_rank_says_what_it_lost(watches: list[Any]) -> None:
    lost = watches[1].missing(RuntimeError("connection closed\nand more"))
    assert str(lost).startswith("rank 1 of 3 lost touch with the others (connection closed)")


def test_the_reason_of_an_error_reaches_the_others(watches: list[Any]) -> None:
    watches[1].report("no space left")
    begin = time.monotonic()
    stopped = watches[2].missing(RuntimeError("connection closed"))
    assert str(stopped) == "rank 1 of 3 stopped: no space left"
    assert stopped.code == "rank_stopped"
    assert time.monotonic() - begin < 0.5, "nobody is waited for"
    with pytest.raises(ResourceError, match="rank 1 of 3 stopped"):
        watches[0].look(first=True)


def test_silence_is_borne_for_the_timeout_only(watches: list[Any]) -> None:
    watches[0].end()
    watches[1].look(first=True)
    watches[1].look(first=False)
    time.sleep(2.1)
    with pytest.raises(ResourceError, match=r"rank 0 of 3 gave no sign of life for 2 s \(`rank_timeout`\)"):
        watches[1].look(first=False)


def test_the_first_rank_waits_for_departures(watches: list[Any]) -> None:
    watches[1].depart()
    watches[2].end()  # without a word
    begin = time.monotonic()
    watches[0].depart()
    assert 0.9 < time.monotonic() - begin < watch.DEPARTURE / 2


def test_ranks_that_do_not_come_are_named() -> None:
    store = HashStore()
    ranks = [RankWatch(store, rank, 4, timeout=0.3) for rank in (0, 2)]
    with pytest.raises(ResourceError, match=r"^rank 1, 3 of 4 did not come within 0\.3 s \(`rank_timeout`\)") as caught:
        ranks[0].meet()
    assert (caught.value.code, caught.value.fields) == ("rank_lost", ("rank_timeout",))
    ranks += [RankWatch(store, rank, 4, timeout=0.3) for rank in (1, 3)]
    ranks[0].meet()
    for rank in ranks:
        rank.end()
