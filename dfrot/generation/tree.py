"""What a round of drafting proposes: a tree of tokens, a chain being the tree without branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfrot.draft.models.base import DraftState
from dfrot.errors import InputError


@dataclass(frozen=True)
class TreeShape:
    """depth: drafted levels; topk: children per node and nodes that grow per level; total: nodes of the verified
    tree, the root counted. topk 1 is a chain of `depth` guesses."""

    depth: int
    topk: int = 1
    total: int = 0

    def __post_init__(self) -> None:
        if self.depth < 0 or self.topk < 1:
            raise InputError(f"draft tree {self.depth},{self.topk}: depth and top-k must be positive")
        if self.topk > 1 and self.total < 2:
            raise InputError(f"draft tree total {self.total}: at least the root and one guess are needed")

    @property
    def name(self) -> str:
        """`chain 3` or `tree 5,4,16`."""
        return f"chain {self.depth}" if self.topk == 1 else f"tree {self.depth},{self.topk},{self.total}"

    @classmethod
    def parse(cls, chain: int | None, tree: str | None) -> TreeShape:
        """--chain N or --tree depth,topk,total; a chain of 3 without either."""
        if tree is None:
            return cls(3 if chain is None else chain)
        if chain is not None:
            raise InputError("--chain and --tree exclude each other")
        try:
            depth, topk, total = (int(part) for part in tree.split(","))
        except ValueError:
            raise InputError(f"--tree {tree}: three numbers are needed, for instance 6,4,32") from None
        return cls(depth, topk, total)


@dataclass
class Tree:
    """Nodes in topological order, the root first: tokens, parents (-1 for the root)."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])

    def children(self, node: int) -> list[int]:
        """In the order in which they were proposed, likeliest first."""
        return [child for child, parent in enumerate(self.parents) if parent == node and child]

    def path(self, node: int) -> list[int]:
        """From the root to `node`, both included."""
        found = [node]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found[::-1]


Logits = Callable[[Tensor], Tensor]
"""Outputs of a draft [k, d] -> logits [k, V]."""


@torch.no_grad()
def expand(
    state: DraftState, root: int, output: Tensor, logits: Logits, embed: Callable[[Tensor], Tensor], shape: TreeShape
) -> Tree:
    """Draft from the root's token and output [1, d]. Passes of the draft: depth - 1."""
    if shape.depth == 0:
        return Tree([root])
    if shape.topk == 1:
        return _chain(state, root, output, logits, embed, shape.depth)
    return _tree(state, root, output, logits, embed, shape)


def _chain(
    state: DraftState, root: int, output: Tensor, logits: Logits, embed: Callable[[Tensor], Tensor], depth: int
) -> Tree:
    tree = Tree([root])
    for level in range(depth):
        token = logits(output).float().argmax(-1)  # of bfloat16 it takes three times as long
        tree.tokens.append(int(token))
        tree.parents.append(level)
        if level + 1 < depth:
            output = state.grow(embed(token), [level - 1])
    return tree


def _tree(
    state: DraftState, root: int, output: Tensor, logits: Logits, embed: Callable[[Tensor], Tensor], shape: TreeShape
) -> Tree:
    """EAGLE-2's dynamic tree: the likeliest `topk` nodes of a level grow, the likeliest of all are kept. A node never
    scores above its parent, and ties prefer the shallower one, so that what is kept is always a tree."""
    tokens: list[int] = [root]
    parents, scores, depths = [-1], [0.0], [0]
    grown: dict[int, int] = {}  # node -> its number in the draft's state
    chosen, outputs = [0], output
    for level in range(1, shape.depth + 1):
        top = logits(outputs).float().log_softmax(-1).topk(shape.topk)
        first = len(tokens)
        for row, node in enumerate(chosen):
            for score, token in zip(top.values[row].tolist(), top.indices[row].tolist()):
                tokens.append(token)
                parents.append(node)
                scores.append(scores[node] + min(score, 0.0))
                depths.append(level)
        if level == shape.depth:
            break
        fresh = sorted(range(first, len(tokens)), key=lambda node: -scores[node])
        chosen = sorted(fresh[: shape.topk])
        embedded = embed(torch.tensor([tokens[node] for node in chosen]))
        outputs = state.grow(embedded, [grown.get(parents[node], -1) for node in chosen])
        for node in chosen:
            grown[node] = len(grown)
    best = sorted(range(1, len(tokens)), key=lambda node: (-scores[node], depths[node], node))[: shape.total - 1]
    kept = [0, *sorted(best, key=lambda node: (depths[node], node))]
    place = {node: number for number, node in enumerate(kept)}
    return Tree([tokens[node] for node in kept], [place.get(parents[node], -1) for node in kept])
