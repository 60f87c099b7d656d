"""Verify passes through the native decoder: chains, trees in one call, larger trees branch by branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.generation.aux_outputs import AuxOutputs
from dfrot_kernels.whole_blocks.decoder import LINES

# The native attention splits long caches into parts that are summed separately, and how it splits depends on the call.
# Rows of a call have the bits that they have alone while query rows times query heads per key head are at most
# MAX_ALIKE, or while the cache holds at most SHORT_CACHE positions.
MAX_ALIKE = 32
SHORT_CACHE = 512

RowsAndAux = tuple[Tensor, Tensor | None]
"""Rows behind the final norm [n, d], and outputs of recorded layers side by side [n, f], None without any."""


class NativeVerifier:
    """Verifies draft trees with a NativeDecoder (dfrot/runtime/native_decoder.py)."""

    def __init__(self, native: Any, decoder: nn.Module, group: int) -> None:
        """native: the NativeDecoder of `decoder`. group: query heads per key head."""
        self.native, self.decoder, self.group = native, decoder, group
        self._replay: list[int] | None = None  # tokens of the last tree, if the cache holds none of its nodes

    def tree(self, tokens: list[int], parents: list[int], cache: Any, aux: AuxOutputs) -> RowsAndAux | None:
        """What the final norm makes of a tree [n, d], and the recorded layers' outputs [n, f]; None where the native
        decoder does not serve. aux: is recording.

        A tree that is too large for one call is computed branch by branch: each node once, the cache cropped to the
        fork in between."""
        past, self._replay = int(cache.get_seq_length()), None
        hidden: dict[int, Tensor] = {}
        recorded: dict[int, Tensor] = {}
        chains = branches(parents)
        if len(chains) > 1 and len(tokens) <= LINES:
            rows = self.native.serve_tree(self.decoder, tokens, parents, cache)
            return None if rows is None else (rows, _first(aux.features()))
        for depth, chain in chains:
            cache.crop(past + depth - int(cache.get_seq_length()))
            out = self._chain([tokens[node] for node in chain], cache, aux)
            if out is None:
                cache.crop(past - int(cache.get_seq_length()))
                return None
            hidden |= dict(zip(chain, out[0]))
            recorded |= dict(zip(chain, out[1] if out[1] is not None else ()))
        if len(chains) > 1:
            cache.crop(past - int(cache.get_seq_length()))
            self._replay = tokens
        nodes = range(len(tokens))
        return (
            torch.stack([hidden[node] for node in nodes]),
            torch.stack([recorded[node] for node in nodes]) if recorded else None,
        )

    def keep(self, path: list[int], cache: Any) -> bool:
        """After a tree that was computed branch by branch, of which the cache holds nothing: compute the accepted path
        once more. Returns False where that was not the case and the cache still holds all nodes."""
        tokens, self._replay = self._replay, None
        if tokens is None:
            return False
        if path:
            self._chain([tokens[node] for node in path], cache, None)
        return True

    def _chain(self, tokens: list[int], cache: Any, aux: AuxOutputs | None) -> RowsAndAux | None:
        """`tree` of consecutive tokens, in calls whose rows have the bits that they have alone; None where the
        native decoder does not serve, which the first call decides."""
        parts, recorded = [], []
        short = int(cache.get_seq_length()) + len(tokens) <= SHORT_CACHE
        for part in torch.split(torch.tensor(tokens), LINES if short else min(LINES, max(1, MAX_ALIKE // self.group))):
            call = {"input_ids": part[None], "past_key_values": cache, "use_cache": True}
            out = self.native.serve(self.decoder, call)
            if out is None:
                return None
            parts.append(out.last_hidden_state[0])
            if aux is not None and (features := _first(aux.features())) is not None:
                recorded.append(features)
        return torch.cat(parts), torch.cat(recorded) if recorded else None


def _first(features: Tensor | None) -> Tensor | None:
    """Of [1, n, f] the only sequence."""
    return None if features is None else features[0]


def branches(parents: list[int]) -> list[tuple[int, list[int]]]:
    """A tree as chains in depth-first order: (depth of the chain's first node, its nodes).

    When a chain is computed, the cache, cropped to the chain's depth, holds exactly its ancestors."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    chains: list[tuple[int, list[int]]] = []
    pending = [(0, node) for node in reversed(children.get(-1, []))]
    while pending:
        depth, node = pending.pop()
        chain = [node]
        while below := children.get(chain[-1], []):
            pending += [(depth + len(chain), sibling) for sibling in reversed(below[1:])]
            chain.append(below[0])
        chains.append((depth, chain))
    return chains
