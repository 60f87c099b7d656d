"""Statistics of several taps over chunks of samples that ranks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dfrot.calib.collect_stats import StatsCollector
from dfrot.calib.hessian import HessianSum
from dfrot.calib.stats import CalibStats
from dfrot.ranks.single import Mail, Ranks, rounds_together

HESSIAN_BYTES = 2.25  # per K^2 of what a chunk sends: the upper block triangle, float32


class SharedStatistics:
    """Every tap belongs to a rank: to it go the chunks' parts of the Hessian, added in the order of the chunks, and
    what the ranks collected of everything that has no order."""

    def __init__(
        self, ranks: Ranks, widths: Mapping[str, int], sizes: Mapping[str, int], rank: Tensor, hessians: bool
    ) -> None:
        """widths, sizes: K and rows in the sample by name of the tap. rank: int64 of `sampling_ranks`. hessians:
        whether to collect them."""
        self.ranks, self.with_hessians = ranks, hessians
        owners = ranks.owners([float(width) ** 2 for width in widths.values()])
        self.owners = dict(zip(widths, owners))
        self.collectors = {tap: StatsCollector(width, rank, False, sizes[tap]) for tap, width in widths.items()}
        own = [tap for tap, owner in self.owners.items() if owner == ranks.rank]
        self.hessians = {tap: HessianSum(widths[tap]) for tap in own if hessians}
        nbytes = HESSIAN_BYTES * sum(width**2 for width in widths.values()) if hessians else 1
        self._mail = Mail(ranks, self._add, rounds_together(nbytes))

    def add(self, tap: str, x: Tensor, index: Tensor | slice) -> None:
        """x [..., K]: rows of this rank's chunk at a tap. index: their row numbers in the whole calibration."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.collectors[tap].add(rows, index)
        if self.with_hessians:
            for begin, product in HessianSum.products(rows):
                self._mail.send(self.owners[tap], (tap, begin, product))

    def _add(self, message: tuple[str, int, Tensor]) -> None:
        tap, begin, product = message
        self.hessians[tap].add_product(begin, product)

    def end_round(self) -> None:
        """All ranks have added their chunks of a round."""
        self._mail.deliver()

    def collected(self) -> dict[str, CalibStats]:
        """The statistics by tap on the first rank; nothing on the others. All ranks must call this."""
        self._mail.finish()
        parts: dict[int, dict[str, Any]] = {}
        for tap, owner in self.owners.items():
            parts.setdefault(owner, {})[tap] = self.collectors[tap].part()
        received = [part for part in self.ranks.exchange(parts) if part is not None]
        own: dict[str, dict[str, Tensor]] = {}
        for tap in [tap for tap, owner in self.owners.items() if owner == self.ranks.rank]:
            own[tap] = self._stats(tap, [part[tap] for part in received]).tensors()
        everything = {tap: tensors for part in self.ranks.gather(own) for tap, tensors in part.items()}
        return {
            tap: CalibStats.from_tensors(everything[tap], self.collectors[tap].absmax.shape[0], tap)
            for tap in self.owners
            if everything
        }

    def _stats(self, tap: str, parts: list[dict[str, Any]]) -> CalibStats:
        collector = self.collectors[tap]
        collector.merge(parts)
        stats = collector.stats()
        if not self.with_hessians:
            return stats
        hessian = self.hessians.pop(tap)
        hessian.count = stats.count
        return replace(stats, hessian=hessian.take())
