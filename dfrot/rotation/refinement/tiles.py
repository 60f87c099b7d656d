"""Parallel tiles with results that do not depend on the number of threads.

BLAS and OpenMP split sums differently for different thread counts, and a last bit that differs sends a quantizer
elsewhere. Here the work is cut into tiles of a fixed shape, each computed on one thread; the number of threads only
decides who computes a tile, never how. The same holds for processes that share the tiles.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from dfrot.ranks.single import SINGLE, Ranks

T = TypeVar("T")
R = TypeVar("R")
TILE = 2**21  # numbers in a tile of rows: 512 rows at width 4096, 8192 at width 256
CACHED = 2**18  # numbers in a step of elementwise work: stays in a core's cache
SQUARE_TILES = 8  # tiles of a [d, d] matrix


def tile_rows(width: int) -> int:
    """Rows per tile of a tall matrix of this width."""
    return max(64, TILE // width)


def spans(count: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` that cover range(count)."""
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def square_tile_rows(width: int) -> int:
    """Rows per tile of a [width, width] matrix."""
    return max(32, -(-width // SQUARE_TILES))


class Tiles:
    """A pool of one-thread workers: `with Tiles() as tiles:`, as many as torch has threads.

    Torch itself runs on one thread inside the `with` block; its thread count is restored afterwards."""

    def __init__(self, ranks: Ranks = SINGLE) -> None:
        """ranks: processes that share what `shared`, `fill` and `matmul` do; all of them must call these alike."""
        self.ranks = ranks
        self.workers = torch.get_num_threads()

    def __enter__(self) -> Tiles:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.workers)

    def alone(self) -> Tiles:
        """The same pool, for what a single rank does."""
        tiles = copy.copy(self)
        tiles.ranks = SINGLE
        return tiles

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """function(item) for every item, on this rank; results in order; the first error is raised."""
        items = list(items)
        if self.workers == 1 or len(items) == 1:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))

    def shared(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """function(item) for every item, each computed by one rank; results, which travel, in order on all of them."""
        return self.ranks.everyones(self.each(function, self.ranks.own(items)))

    def fill(self, target: Tensor, function: Callable[[slice], R], parts: Sequence[slice]) -> list[R]:
        """function(part), which writes the rows target[part] and returns a number, for every part, each on one rank;
        afterwards all ranks have all rows. Returns the numbers in order."""

        def rows(part: slice) -> R | list[Any]:
            result = function(part)
            return result if self.ranks.size == 1 else [result, target[part]]

        results: list[Any] = self.shared(rows, parts)
        if self.ranks.size > 1:
            own = self.ranks.own(range(len(parts)))
            for number, (part, (_, computed)) in enumerate(zip(parts, results)):
                if number not in own:
                    target[part] = computed
            results = [result for result, _ in results]
        return results

    def matmul(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """a [m, k] @ b [k, n] in tiles of rows, in the dtype of the operands (or cast into `out` [m, n])."""
        product = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype) if out is None else out

        def tile(rows: slice) -> None:
            if product.dtype == a.dtype:
                torch.mm(a[rows], b, out=product[rows])
            else:
                product[rows] = a[rows] @ b

        self.fill(product, tile, spans(a.shape[0], square_tile_rows(a.shape[0])))
        return product
