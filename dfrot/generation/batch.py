"""Several texts in one step: the sequences of a batch, each with a packed cache of its own.

A step computes one token of every sequence in one native call (dfq_decode_batch), and every sequence gets the bits that
it would get alone. Prompts are read in chunks, so that nobody waits long for somebody else's prompt. Chunks begin at
multiples of their size: what a sequence gets depends on its own tokens alone, not on its neighbours, nor on how much of
its prompt was known already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.compat.cache import replace_layers
from dfrot.errors import ResourceError
from dfrot.generation.prefix_store import PrefixStore
from dfrot.generation.target import Target
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot_kernels.whole_blocks.decoder import LINES

CHUNK = 128  # positions of a prompt that are read at a time
CACHE_BYTES = 2 << 30
PREFIX_BYTES = 256 << 20


class BatchedSequence:
    """A prompt and what was generated behind it, as the model sees it: made by `Batch.start`."""

    def __init__(self, prompt: Sequence[int], cache: Any, table: Tensor, reserved: int) -> None:
        self.prompt, self.cache, self.table, self.reserved = tuple(prompt), cache, table, reserved
        self.shared = 0  # leading positions that were not computed but copied

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return int(self.cache.layers[0].length)

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.length >= len(self.prompt)


class Batch:
    """The sequences of one target that are decoded together.

    unfit: why this target's texts cannot share a step, or None. steps, rows: steps done, and sequences in them."""

    def __init__(
        self, target: Target, chunk: int = CHUNK, cache_bytes: int = CACHE_BYTES, prefix_bytes: int = PREFIX_BYTES
    ) -> None:
        """chunk: positions of a prompt that are read at a time. cache_bytes: the most memory of all caches together.
        prefix_bytes: the most memory of beginnings of prompts that are kept; 0 keeps none."""
        self.target, self.chunk, self.cache_bytes = target, chunk, cache_bytes
        self.reserved = 0  # bytes of the caches of all sequences
        self.steps = self.rows = 0
        self._template: list[DfqCacheLayer] = []
        self.unfit = self._probe()
        if self.unfit is None:
            target.prompt_chunk = chunk  # who is not in the batch must get the same bits
        sinks = self._template[0].sinks.count if self._template else 0
        self.prefixes = PrefixStore(chunk, prefix_bytes if sinks <= chunk else 0)

    @torch.inference_mode()
    def _probe(self) -> str | None:
        """Decode a token natively, to see whether it works. Returns why not."""
        native = self.target.native
        if native is None:
            module = getattr(self.target.decoder, "dfq_native", None)
            return "no packed 4-bit model with a packed cache" if module is None else str(module.unfit)
        cache, before = self.target.start(), native.steps
        self.target.decoder(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
        if native.steps == before:
            return str(next(iter(native.fallbacks), "the native decoder does not serve this model"))
        self._template = [layer.fresh() for layer in cache.layers]
        self._position_bytes = sum(
            part[:1].numel() * part.element_size()
            for layer in cache.layers
            for store in layer.packed
            for part in store.parts
        )
        sinks = [tensor for layer in cache.layers for tensor in layer.sink_states.tensors or ()]
        self._sink_bytes = sum(tensor.numel() * tensor.element_size() for tensor in sinks)
        return None

    def bytes_for(self, positions: int) -> int:
        """Bytes of the cache of a sequence of so many positions."""
        return int(positions * self._position_bytes + self._sink_bytes)

    def has_room(self, positions: int) -> bool:
        """Whether a sequence of so many positions, new tokens included, fits beside those that were started."""
        return self.reserved + self.bytes_for(positions) <= self.cache_bytes

    @torch.inference_mode()
    def start(self, prompt: Sequence[int], positions: int) -> BatchedSequence:
        """A sequence with room for `positions` positions, its prompt included, of which what is known of its beginning
        is copied. Raises ResourceError where there is no room."""
        if not self.has_room(positions):
            raise ResourceError(
                f"a cache of {positions} positions takes {self.bytes_for(positions)} bytes; {self.reserved} of "
                f"{self.cache_bytes} are taken",
                field="cache_bytes",
            )
        cache = self.target.start()
        replace_layers(cache, [layer.fresh() for layer in self._template])
        table = self.target.native.make_room(self.target.decoder, cache, positions)
        sequence = BatchedSequence(prompt, cache, table, self.bytes_for(positions))
        self.reserved += sequence.reserved
        if self.prefixes.limit:
            sequence.shared = self.prefixes.restore(prompt, cache.layers)
        return sequence

    def end(self, sequence: BatchedSequence) -> None:
        """Give the memory of a sequence back."""
        self.reserved -= sequence.reserved
        sequence.cache, sequence.reserved = None, 0

    @torch.inference_mode()
    def read(self, sequence: BatchedSequence) -> Tensor | None:
        """Read the next chunk of a prompt. Returns logits float32 [V] behind its last token, None before that."""
        begin, prompt = sequence.length, sequence.prompt
        end = min(begin + self.chunk, len(prompt))
        ids = torch.tensor([prompt[begin:end]])
        out = self.target.decoder(input_ids=ids, past_key_values=sequence.cache, use_cache=True)
        if end % self.chunk == 0 and self.prefixes.limit:
            self.prefixes.keep(prompt, end, sequence.cache.layers)
        if end < len(prompt):
            return None
        return self.target.logits_rows(out.last_hidden_state[:, -1:])[0, 0].float()

    @torch.inference_mode()
    def step(self, sequences: Sequence[BatchedSequence], tokens: Sequence[int]) -> Tensor:
        """One token of every sequence: logits float32 [n, V] behind tokens[i] of sequence i.

        Raises an exception where the model changed so that the native decoder does not serve it any more."""
        sinks = self._template[0].sinks.count
        logits: list[Tensor | None] = [None] * len(tokens)
        for i, sequence in enumerate(sequences):
            if sequence.length < sinks:  # its activations stay in 16 bits: another decoder
                logits[i] = self.target.step(tokens[i], sequence.cache)
        rest = [i for i, row in enumerate(logits) if row is None]
        for part in _even_parts(rest, LINES):
            caches, tables = [sequences[i].cache for i in part], [sequences[i].table for i in part]
            features = self.target.native.serve_batch(self.target.decoder, [tokens[i] for i in part], caches, tables)
            for i, row in zip(part, self.target.logits_rows(features[None])[0].float()):
                logits[i] = row
        self.steps += 1
        self.rows += len(tokens)
        return torch.stack([row for row in logits if row is not None])


def _even_parts(items: list[int], most: int) -> list[list[int]]:
    """The items in as few parts of at most `most` as there can be, of nearly the same size."""
    count = -(-len(items) // most)
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]
