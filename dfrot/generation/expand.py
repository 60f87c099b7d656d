"""expand"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfrot.draft.models.state import DraftState
from dfrot.generation.tree import Tree, TreeShape

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
