"""Prompts that begin alike: what the cache holds of their common beginning is computed once.

A prompt is read in chunks of a fixed number of positions, counted from its beginning, so what a chunk leaves in the
cache depends on the tokens up to its end and on nothing else. The store keeps copies of whole chunks, each under the
digest of all tokens up to its end, and gives the memory of those that were not used for longest to new ones.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor

from dfrot.runtime.kv_cache import DfqCacheLayer

Chunk = list[list[Tensor]]
"""Of every layer what is stored of a chunk's positions (`DfqCacheLayer.stored`)."""


class PrefixStore:
    """Chunks of prompts, at most `limit` bytes of them."""

    def __init__(self, chunk: int, limit: int) -> None:
        """chunk: positions of a chunk. limit: bytes; 0 keeps nothing."""
        self.chunk, self.limit, self.bytes = chunk, limit, 0
        self._chunks: OrderedDict[bytes, Chunk] = OrderedDict()  # those not used for longest come first

    def __len__(self) -> int:
        return len(self._chunks)

    def restore(self, prompt: Sequence[int], layers: Sequence[DfqCacheLayer]) -> int:
        """Copy the longest known beginning of a prompt into the layers of an empty cache, which have room; at least one
        token is left to be read. Returns its positions."""
        found: list[tuple[bytes, Chunk]] = []
        for digest in self._digests(prompt, (len(prompt) - 1) // self.chunk):
            chunk = self._chunks.get(digest)
            if chunk is None:
                break
            found.append((digest, chunk))
        for number, (_, chunk) in enumerate(found):
            begin = number * self.chunk
            for layer, parts in zip(layers, chunk):
                for to, part in zip(layer.stored(begin, begin + self.chunk), parts):
                    to.copy_(part)
        for digest, _ in reversed(found):  # a beginning is never forgotten before what continues it
            self._chunks.move_to_end(digest)
        for layer in layers:
            layer.length = len(found) * self.chunk
        return len(found) * self.chunk

    def keep(self, prompt: Sequence[int], end: int, layers: Sequence[DfqCacheLayer]) -> None:
        """Copy the chunk that ends at position `end` of a prompt, a multiple of `chunk`, unless it is known."""
        digests = list(self._digests(prompt, end // self.chunk))
        if digests[-1] not in self._chunks and all(digest in self._chunks for digest in digests[:-1]):
            chunk = [[part.clone() for part in layer.stored(end - self.chunk, end)] for layer in layers]
            self._chunks[digests[-1]] = chunk
            self.bytes += _bytes_of(chunk)
        for digest in reversed(digests):
            if digest in self._chunks:
                self._chunks.move_to_end(digest)
        while self.bytes > self.limit:
            _, oldest = self._chunks.popitem(last=False)
            self.bytes -= _bytes_of(oldest)

    def _digests(self, prompt: Sequence[int], count: int) -> Iterator[bytes]:
        """Of the tokens up to the end of each of the first `count` chunks."""
        running = hashlib.blake2b(digest_size=32)
        for number in range(count):
            running.update(array("q", prompt[number * self.chunk : (number + 1) * self.chunk]).tobytes())
            yield running.digest()


def _bytes_of(chunk: Chunk) -> int:
    return sum(part.numel() * part.element_size() for parts in chunk for part in parts)
