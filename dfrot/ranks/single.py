"""What a stage knows of the processes that share it; here: a single one.

Every rank runs the same stage. Units of work (chunks of samples, windows, linears) are numbered, and each belongs to
one rank. Floating-point sums depend on their order, so what ranks compute is added in the order of the units, whoever
computed them: the result has the same bytes on any number of ranks. The first rank writes what is published, prints,
and reports progress.

Values that travel are trees of dicts, lists, strings, numbers and CPU tensors. A dict's keys are strings or numbers.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Receive = Callable[[Any], None]
"""Called with one message after the other."""


class Ranks:
    """A single process, and the interface of several (`dfrot.ranks.processes.ProcessRanks`)."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, prints and reports."""
        return self.rank == 0

    def rounds(self, count: int) -> Iterator[int | None]:
        """For each round of `size` consecutive units: the number of this rank's unit, None where none is left.

        All ranks go through the same number of rounds, and the units of a round are in the order of the ranks."""
        for begin in range(0, count, self.size):
            unit = begin + self.rank
            yield unit if unit < count else None

    def own(self, units: Sequence[T]) -> Sequence[T]:
        """This rank's units, in order: those that `rounds` hands out."""
        return units[self.rank :: self.size]

    def owners(self, costs: Sequence[float]) -> list[int]:
        """The rank that does each of several jobs of these costs: the most expensive first, to the least busy rank."""
        loads = [0.0] * self.size
        owners = [0] * len(costs)
        for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
            owners[job] = min(range(self.size), key=loads.__getitem__)
            loads[owners[job]] += costs[job]
        return owners

    def exchange(self, outgoing: Mapping[int, Any]) -> list[Any]:
        """Send a value to some ranks each; returns what every rank sent to this one, None where it sent nothing."""
        return [outgoing.get(0)]

    def gather(self, value: Any, to: int = 0) -> list[Any]:
        """The values of all ranks, in their order, on rank `to`; an empty list on the others."""
        values = self.exchange({to: value})
        return values if self.rank == to else []

    def gather_everywhere(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank."""
        return self.exchange(dict.fromkeys(range(self.size), value))

    def everyones(self, results: Sequence[T]) -> list[T]:
        """The results of all units in their order, on every rank. results: of this rank's `own` units."""
        return in_order(self.gather_everywhere(results))

    def mean(self, count: int, measure: Callable[[int], float]) -> float:
        """The mean of measure(0) .. measure(count - 1), each measured by one rank and added in order; on every rank."""
        values: list[float] = []
        mail = Mail(self, values.append)
        for unit in self.rounds(count):
            if unit is not None:
                mail.send(0, measure(unit))
            mail.deliver()
        return float(self.broadcast(sum(values) / count))

    def filled(self, *tensors: Any) -> list[Any]:
        """Tensors of which every rank has filled in some entries and left the others 0: whole, on every rank."""
        if self.size == 1:
            return list(tensors)
        first, *others = self.gather_everywhere(list(tensors))
        return [sum((part[number] for part in others), tensor) for number, tensor in enumerate(first)]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of rank `source`; that of the others is ignored."""
        return value

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """What the first rank does before the others do it too: a download to a cache that they share."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def leave(self) -> None:
        """End working together, once all ranks are here."""

    def peak_bytes(self) -> list[int]:
        """The largest resident memory of every rank so far, on every rank. All ranks must call this."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return [int(value) for value in self.gather_everywhere(peak if sys.platform == "darwin" else peak * 1024)]


def in_order(parts: Sequence[Sequence[T]]) -> list[T]:
    """One value per unit, in the order of the units, from the values of every rank's `own` units."""
    return [parts[unit % len(parts)][unit // len(parts)] for unit in range(sum(map(len, parts)))]


SINGLE = Ranks()
"""The default of every stage."""


WAITING_BYTES = 256 << 20
"""Of messages that a rank keeps until it is worth while to exchange them: ranks that meet seldom wait seldom."""


def rounds_together(nbytes: float) -> int:
    """How many rounds of messages of `nbytes` each may wait; all ranks must ask for the same."""
    return max(1, int(WAITING_BYTES // max(nbytes, 1)))


class Mail:
    """Messages whose order of arrival does not depend on the number of ranks.

    Within a round every rank works on one unit and sends messages on it. They arrive in the order of the units, those
    on one unit in the order in which they were sent: at once in a single process, otherwise with `deliver` or
    `finish`."""

    def __init__(self, ranks: Ranks, receive: Receive, rounds: int = 1) -> None:
        """receive: called on the rank that a message was sent to. rounds: that are delivered together, the same on all
        ranks."""
        self.ranks, self.receive, self.rounds = ranks, receive, rounds
        self._waiting: list[dict[int, list[Any]]] = [{}]  # of every round that was not delivered, by receiver

    def send(self, to: int, message: Any) -> None:
        """Send a message on this rank's unit to rank `to`."""
        if self.ranks.size == 1:
            self.receive(message)
        else:
            self._waiting[-1].setdefault(to, []).append(message)

    def deliver(self) -> None:
        """End a round. All ranks must call this, also those that had no unit."""
        if self.ranks.size == 1:
            return
        if len(self._waiting) >= self.rounds:
            self._exchange(self._waiting)
            self._waiting = []
        self._waiting.append({})

    def finish(self) -> None:
        """Deliver what waits; behind the last round. All ranks must call this."""
        if len(self._waiting) > 1:
            self._exchange(self._waiting[:-1])
            self._waiting = [{}]

    def _exchange(self, rounds: Sequence[dict[int, list[Any]]]) -> None:
        outgoing = {to: [sent.get(to, []) for sent in rounds] for to in range(self.ranks.size)}
        incoming = self.ranks.exchange(outgoing)
        for number in range(len(rounds)):
            for messages in incoming:
                for message in messages[number]:
                    self.receive(message)
                messages[number] = None  # frees what it holds
