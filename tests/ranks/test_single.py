from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfrot.ranks.single import SINGLE, Mail, Ranks, in_order, rounds_together


class OneOf(Ranks):
    """A rank that sends nothing."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_rounds_hand_out_every_unit_once_and_in_order() -> None:
    rounds = list(zip(*(OneOf(rank, 3).rounds(8) for rank in range(3))))
    assert rounds == [(0, 1, 2), (3, 4, 5), (6, 7, None)]
    assert list(OneOf(0, 4).rounds(0)) == []


def test_results_of_own_units_make_the_whole() -> None:
    units = [f"unit {number}" for number in range(8)]
    parts = [OneOf(rank, 3).own(units) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert list(part) == [units[number] for number in OneOf(rank, 3).rounds(8) if number is not None]
    assert in_order(parts) == units


def test_costs_are_shared() -> None:
    owners = OneOf(0, 3).owners([5, 1, 1, 9, 4, 4])
    loads = [sum(cost for cost, owner in zip([5, 1, 1, 9, 4, 4], owners) if owner == rank) for rank in range(3)]
    assert sorted(loads) == [7, 8, 9]
    assert SINGLE.owners([3, 2]) == [0, 0]


def test_a_single_rank_gets_its_own_mail_at_once() -> None:
    received: list[str] = []
    mail = Mail(SINGLE, received.append)
    mail.send(0, "now")
    assert received == ["now"]
    mail.deliver()
    assert received == ["now"]
    assert SINGLE.gather("own") == SINGLE.gather_everywhere("own") == ["own"]
    assert SINGLE.broadcast("own") == "own"
    assert SINGLE.everyones(SINGLE.own([1, 2, 3])) == [1, 2, 3]
    assert SINGLE.mean(4, float) == 1.5
    assert SINGLE.peak_bytes()[0] > 1 << 20


class Echo(Ranks):
    """The first of two ranks, whose other one sends what it is given here. sent: by exchange."""

    def __init__(self, others: list[Any]) -> None:
        self.rank, self.size = 0, 2
        self.others, self.sent = others, []  # type: list[Any], list[Any]

    def exchange(self, outgoing: Mapping[int, Any]) -> list[Any]:
        self.sent.append(outgoing)
        return [outgoing[0], self.others.pop(0)]


def test_rounds_that_travel_together_arrive_in_the_order_of_the_units() -> None:
    received: list[str] = []
    ranks = Echo([[["b0"], ["b1"]], [[]]])
    mail = Mail(ranks, received.append, 2)
    for number in range(3):
        mail.send(0, f"a{number}")
        mail.deliver()
        assert len(ranks.sent) == (number + 1) // 2
    mail.finish()
    mail.finish()
    assert received == ["a0", "b0", "a1", "b1", "a2"]
    assert len(ranks.sent) == 2
    assert rounds_together(1 << 40) == 1
    assert rounds_together(100 << 20) == 2
