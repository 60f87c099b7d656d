"""Drafting one round: a chain of draft tokens, or EAGLE-2's dynamic tree (arXiv 2406.16858, section 4.1).

A draft of whole blocks has computed all levels when its state was extended. Its draft tokens do not see one another:
every node of a level has the same candidates, with the same probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dfrot.generation.speculation.drafter import DraftState, LogitsFunction
from dfrot.generation.speculation.tree import Tree, TreeShape

EmbedFunction = Callable[[Tensor], Tensor]
"""Token ids int64 [k] -> embeddings [k, d]."""


@torch.no_grad()
def expand(
    state: DraftState,
    root: int,
    output: Tensor,
    logits: LogitsFunction,
    embed: EmbedFunction,
    shape: TreeShape,
    token_ids: Tensor | None = None,
) -> Tree:
    """Draft a tree below the root's token, from the draft's output [1, d] at the root, or from those [n, d] of a whole
    block, n at least the depth. Takes depth - 1 draft passes, for a block none.

    token_ids: int64 [N] of the tokens that the logits are of; None for the whole vocabulary."""
    if shape.depth == 0:
        return Tree([root])
    draft = _Draft(state, logits, embed, token_ids)
    if state.whole_blocks and shape.topk == 1:
        tokens = draft.tokens(logits(output[: shape.depth]).float().argmax(-1)).tolist()
        return Tree([root, *tokens], list(range(-1, shape.depth)))
    return _chain(draft, root, output, shape.depth) if shape.topk == 1 else _tree(draft, root, output, shape)


class _Draft(NamedTuple):
    state: DraftState
    logits: LogitsFunction
    embed: EmbedFunction
    token_ids: Tensor | None

    def tokens(self, indices: Tensor) -> Tensor:
        """Indices into the logits -> the target's token ids."""
        return indices if self.token_ids is None else self.token_ids[indices]

    def candidates(self, outputs: Tensor, count: int) -> list[list[tuple[float, int]]]:
        """Per row of outputs [k, d] the `count` likeliest tokens: log probability and token id, the likeliest first."""
        top = self.logits(outputs).float().log_softmax(-1).topk(count)
        tokens = self.tokens(top.indices).tolist()
        return [list(zip(*row)) for row in zip(top.values.tolist(), tokens)]


def _chain(draft: _Draft, root: int, output: Tensor, depth: int) -> Tree:
    tree = Tree([root])
    for level in range(depth):
        token = draft.tokens(draft.logits(output).float().argmax(-1))  # argmax of bfloat16 takes three times as long
        tree.tokens.append(int(token))
        tree.parents.append(level)
        if level + 1 < depth:
            output = draft.state.grow(draft.embed(token), [level - 1])
    return tree


def _tree(draft: _Draft, root: int, output: Tensor, shape: TreeShape) -> Tree:
    """EAGLE-2: the likeliest `topk` nodes of a level get children, then the likeliest `total` nodes of all are kept.

    A node's score is the log probability of its path, so that it never exceeds its parent's; ties prefer the shallower
    node. Hence the kept nodes always form a tree."""
    tokens: list[int] = [root]
    parents, scores, depths = [-1], [0.0], [0]
    state_number: dict[int, int] = {}  # node -> its number in the draft's state
    level_nodes, outputs = [0], output
    block = draft.candidates(output[: shape.depth], shape.topk) if draft.state.whole_blocks else []
    for depth in range(1, shape.depth + 1):
        level = block[depth - 1 : depth] * len(level_nodes) or draft.candidates(outputs, shape.topk)
        first_child = len(tokens)
        for candidates, node in zip(level, level_nodes):
            for score, token in candidates:
                tokens.append(token)
                parents.append(node)
                scores.append(scores[node] + min(score, 0.0))
                depths.append(depth)
        if depth == shape.depth:
            break
        ranked = sorted(range(first_child, len(tokens)), key=lambda node: -scores[node])
        level_nodes = sorted(ranked[: shape.topk])
        if block:
            continue
        embeddings = draft.embed(torch.tensor([tokens[node] for node in level_nodes]))
        outputs = draft.state.grow(embeddings, [state_number.get(parents[node], -1) for node in level_nodes])
        for node in level_nodes:
            state_number[node] = len(state_number)
    best = sorted(range(1, len(tokens)), key=lambda node: (-scores[node], depths[node], node))[: shape.total - 1]
    kept = [0, *sorted(best, key=lambda node: (depths[node], node))]
    index_of = {node: index for index, node in enumerate(kept)}
    return Tree([tokens[node] for node in kept], [index_of.get(parents[node], -1) for node in kept])
