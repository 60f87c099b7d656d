from __future__ import annotations

from dfrot.ranks.single import SINGLE, Mail, Ranks, in_order


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
