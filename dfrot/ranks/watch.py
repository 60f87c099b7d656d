"""Which rank is missing when processes that work together lose one another.

Every rank leaves a sign of life in the store that they met at, twice a second, from a thread of its own: a rank that
computes for an hour is slow, one without signs is lost. A rank that ends by an error leaves its reason there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from dfrot.errors import ResourceError, reason_of

BEAT = 0.5  # seconds between two signs
LISTEN = 4.0  # seconds in which a rank that is there gives one, on a busy machine too
DEPARTURE = 20.0  # seconds that the first rank waits for the others, at most
RESUME = "give the command again to go on, with any number of ranks"


class RankWatch:
    """Signs of life of all ranks. store: a `torch.distributed.Store`."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        """timeout: seconds without a sign until a rank counts as lost."""
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._sign(0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _sign(self, count: int) -> None:
        self.store.set(f"sign/{self.rank}", str(count))

    def _beat(self) -> None:
        count = 0
        with contextlib.suppress(RuntimeError):  # the store is gone; a collective will say so
            while not self._ended.wait(BEAT):
                count += 1
                self._sign(count)

    def end(self) -> None:
        """Give no more signs."""
        self._ended.set()
        self._thread.join(BEAT)

    def meet(self) -> None:
        """Wait until every rank has given a sign. Raises ResourceError that names those without one in time."""
        end, missing = time.monotonic() + self.timeout, list(range(self.size))
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it whoever hosts it
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not self.store.check([f"sign/{rank}"])]
                if missing:
                    time.sleep(BEAT / 2)
        if missing:
            raise self._lost(missing, f"did not come within {self.timeout:g} s (`rank_timeout`)")

    def report(self, reason: str) -> None:
        """Leave the reason why this rank ends for the others."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", reason)

    def reported(self) -> dict[int, str]:
        """The reasons of ranks that ended by an error. Raises RuntimeError when the store is gone."""
        keys = {rank: f"failed/{rank}" for rank in range(self.size)}
        return {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}

    def _silent(self) -> dict[int, float]:
        """Seconds since the last new sign of every other rank, as far as this one has looked."""
        now, silent = time.monotonic(), {}
        for rank in range(self.size):
            if rank == self.rank:
                continue
            sign = self.store.get(f"sign/{rank}")
            before, since = self._signs.get(rank, (b"", now))
            if sign != before:
                since = now
            self._signs[rank] = sign, since
            silent[rank] = now - since
        return silent

    def look(self, first: bool) -> None:
        """Called now and then while this rank waits; `first` when it begins to. Raises ResourceError when a rank ended
        by an error or gave no sign for too long."""
        if reasons := self.reported():
            raise self._stopped(reasons)
        if first:
            self._signs = {}
        lost = [rank for rank, seconds in self._silent().items() if seconds > self.timeout]
        if lost:
            raise self._lost(lost, f"gave no sign of life for {self.timeout:g} s (`rank_timeout`)")

    def missing(self, error: BaseException) -> ResourceError:
        """Why working together failed with `error`: what another rank reported, or which one gives no sign."""
        try:
            self._signs = {}
            self._silent()
            end = time.monotonic() + LISTEN
            while time.monotonic() < end:
                if reasons := self.reported():
                    return self._stopped(reasons)
                time.sleep(BEAT / 2)
                silent = self._silent()
            lost = [rank for rank, seconds in silent.items() if seconds > LISTEN / 2]
        except RuntimeError:
            lost = [0]  # which hosts the store where no launcher does
        if not lost:
            return ResourceError(
                f"rank {self.rank} of {self.size} lost touch with the others ({reason_of(error)}); {RESUME}",
                code="rank_lost",
            )
        return self._lost(lost, "died (killed, out of memory, or its machine is gone)")

    def depart(self) -> None:
        """Called last by a rank that ends by an error. The first one, whose process may host the store, waits for the
        others to read it."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"departed/{self.rank}", "")
            end = time.monotonic() + DEPARTURE
            waiting = set(range(1, self.size)) if self.rank == 0 else set()
            while waiting and time.monotonic() < end:
                time.sleep(BEAT / 2)
                silent = self._silent()
                gone = {rank for rank in waiting if self.store.check([f"departed/{rank}"]) or silent[rank] > LISTEN}
                waiting -= gone

    def _stopped(self, reasons: dict[int, str]) -> ResourceError:
        rank, reason = next(iter(reasons.items()))
        return ResourceError(f"rank {rank} of {self.size} stopped: {reason}", code="rank_stopped")

    def _lost(self, ranks: list[int], reason: str) -> ResourceError:
        names = ", ".join(map(str, ranks))
        return ResourceError(f"rank {names} of {self.size} {reason}; {RESUME}", field="rank_timeout", code="rank_lost")
