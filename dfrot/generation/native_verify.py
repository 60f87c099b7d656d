"""Blocks of guesses through a target's native decoder: chains, trees in one call, larger trees branch by branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot_kernels.whole_blocks.decoder import LINES

# The native attention cuts long caches into stretches: alike while query rows times heads per key head stay within the
# first number, or the positions within the second.
ALIKE, STRETCH = 32, 512


class NativeVerifier:
    """native: the NativeDecoder (dfrot/runtime/native_decoder.py) of `decoder`; group: query heads per key head."""

    def __init__(self, native: Any, decoder: nn.Module, group: int) -> None:
        self.native, self.decoder, self.group = native, decoder, group
        self._replay: list[int] | None = None  # tokens of a tree of which the cache holds nothing

    def tree(self, tokens: list[int], parents: list[int], cache: Any) -> Tensor | None:
        """Features [n, d] of a tree: in one call, or where it is too large for that branch by branch, each node once,
        the cache cropped to the fork in between. None where the native decoder does not serve."""
        past, self._replay = int(cache.get_seq_length()), None
        hidden: dict[int, Tensor] = {}
        runs = branches(parents)
        if len(runs) > 1 and len(tokens) <= LINES:
            return self.native.serve_tree(self.decoder, tokens, parents, cache)  # type: ignore[no-any-return]
        for depth, run in runs:
            cache.crop(past + depth - int(cache.get_seq_length()))
            out = self._chain([tokens[node] for node in run], cache)
            if out is None:
                cache.crop(past - int(cache.get_seq_length()))
                return None
            hidden |= dict(zip(run, out))
        if len(runs) > 1:
            cache.crop(past - int(cache.get_seq_length()))
            self._replay = tokens
        return torch.stack([hidden[node] for node in range(len(tokens))])

    def keep(self, path: list[int], cache: Any) -> bool:
        """Whether the accepted path had to be, and was, computed once more: after a tree that went branch by branch."""
        tokens, self._replay = self._replay, None
        if tokens is None:
            return False
        if path:
            self._chain([tokens[node] for node in path], cache)
        return True

    def _chain(self, tokens: list[int], cache: Any) -> Tensor | None:
        """Features [n, d] of consecutive tokens, in blocks whose rows are independent of one another (see ALIKE); None
        where the native decoder does not serve this call, in the middle of nothing."""
        found = []
        short = int(cache.get_seq_length()) + len(tokens) <= STRETCH
        for part in torch.split(torch.tensor(tokens), LINES if short else min(LINES, max(1, ALIKE // self.group))):
            call = {"input_ids": part[None], "past_key_values": cache, "use_cache": True}
            out = self.native.serve(self.decoder, call)
            if out is None:
                return None
            found.append(out.last_hidden_state[0])
        return torch.cat(found)


def branches(parents: list[int]) -> list[tuple[int, list[int]]]:
    """A tree cut into chains, in depth-first order: (depth of the first node, nodes). What stands before a chain in
    that order ends in its ancestors, once cropped to its depth."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    found: list[tuple[int, list[int]]] = []
    waiting = [(0, node) for node in reversed(children.get(-1, []))]
    while waiting:
        depth, node = waiting.pop()
        chain = [node]
        while below := children.get(chain[-1], []):
            waiting += [(depth + len(chain), other) for other in reversed(below[1:])]
            chain.append(below[0])
        found.append((depth, chain))
    return found
