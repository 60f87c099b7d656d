"""Processes that share a stage, over torch.distributed (gloo, CPU tensors).

Only transport comes from there: sums are made in the order of the units of work by whoever receives the parts, so that
their bytes do not depend on an algorithm of reduction.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError, ResourceError, reason_of
from dfrot.ranks.single import Ranks
from dfrot.ranks.watch import BEAT, RankWatch
from dfrot.ranks.wire import decode, encode

OPERATION_TIME = datetime.timedelta(days=30)  # of gloo: how long ranks wait is decided by signs of life
SHORTEST, LONGEST = 5e-5, 5e-3  # seconds between two looks at an operation


class ProcessRanks(Ranks):
    """One of several processes, each of which runs the same stage with the same arguments."""

    def __init__(self, rank: int, size: int, address: str, port: int, timeout: float) -> None:
        """rank: of this process, from 0. size: number of processes. address, port: where they meet. timeout: seconds
        without a sign of life until one counts as lost, and in which all must have met. Raises ResourceError when the
        others are not reached, or one is lost before all have met."""
        if not 0 <= rank < size:
            raise InputError(f"rank {rank} of {size}: ranks count from 0; check RANK and WORLD_SIZE")
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size = rank, size
        patience = datetime.timedelta(seconds=timeout)
        try:
            store, _, _ = next(rendezvous(f"tcp://{address}:{port}", rank, size, timeout=patience))
        except (RuntimeError, ValueError) as error:
            raise ResourceError(
                f"rank {rank} of {size} did not find the others at {address}:{port} within {timeout:g} s "
                f"(`rank_timeout`): {reason_of(error)}",
                field="rank_timeout",
                code="rank_lost",
            ) from None
        self._watch = RankWatch(PrefixStore("dfq-watch", store), rank, size, timeout)
        self._watch.meet()
        try:
            # what connects them waits for a rank as long as for a result: so this time first, the other one behind it
            dist.init_process_group(
                "gloo", store=PrefixStore("dfq", store), rank=rank, world_size=size, timeout=patience
            )
            dist.distributed_c10d._set_pg_timeout(OPERATION_TIME)
        except (RuntimeError, ValueError) as error:
            raise self._watch.missing(error) from None
        self._dist = dist
        self.barrier()

    def exchange(self, outgoing: Mapping[int, Any]) -> list[Any]:
        """See Ranks."""
        encoded: dict[int, Tensor] = {}  # by identity of the value, which may go to several ranks
        nothing = torch.empty(0, dtype=torch.uint8)
        parts = []
        for to in range(self.size):
            value = outgoing.get(to) if to != self.rank else None
            if value is not None and id(value) not in encoded:
                encoded[id(value)] = encode(value)
            parts.append(nothing if value is None else encoded[id(value)])
        sent = torch.tensor([len(part) for part in parts])
        received = torch.empty_like(sent)
        self._finish(lambda: self._dist.all_to_all_single(received, sent, async_op=True))
        data, sizes = torch.cat(parts), received.tolist()
        del parts, encoded
        incoming = torch.empty(sum(sizes), dtype=torch.uint8)
        self._finish(lambda: self._dist.all_to_all_single(incoming, data, sizes, sent.tolist(), async_op=True))
        values = [decode(part) if len(part) else None for part in torch.split(incoming, sizes)]
        values[self.rank] = outgoing.get(self.rank)
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """See Ranks."""
        data = encode(value) if self.rank == source else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self._finish(lambda: self._dist.broadcast(length, source, async_op=True))
        if self.rank != source:
            data = torch.empty(int(length), dtype=torch.uint8)
        self._finish(lambda: self._dist.broadcast(data, source, async_op=True))
        return value if self.rank == source else decode(data)

    def barrier(self) -> None:
        """See Ranks."""
        self._finish(lambda: self._dist.barrier(async_op=True))

    def _finish(self, start: Callable[[], Any]) -> None:
        """Start an operation and wait for it. Raises ResourceError that names the rank which prevents it."""
        try:
            operation = start()
            pause, waited, looked = SHORTEST, 0.0, 0
            while not operation.is_completed():
                time.sleep(pause)
                waited += pause
                pause = min(LONGEST, pause * 1.5)
                if waited > (looked + 1) * 2 * BEAT:
                    self._watch.look(first=looked == 0)
                    looked += 1
            operation.wait()
        except RuntimeError as error:
            raise self._watch.missing(error) from None

    def leave(self) -> None:
        """See Ranks."""
        self.barrier()
        self._watch.end()
        self._dist.destroy_process_group()

    def fail(self, reason: str) -> int | None:
        """Leave the reason of this rank's error for the others. Returns the lowest rank that reported one, which may be
        this one; None when the store is gone."""
        self._watch.report(reason)
        with contextlib.suppress(RuntimeError):
            time.sleep(2 * BEAT)  # ranks that run into the same error do so together
            return min(self._watch.reported())
        return None

    def stopped(self, error: BaseException) -> ResourceError:
        """Why this process was asked to end by its launcher."""
        return self._watch.missing(error)

    def depart(self) -> None:
        """Called last by a rank that ends by an error: others may still read its reason."""
        self._watch.depart()
