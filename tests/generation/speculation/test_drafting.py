"""Draft trees are trees of the requested size that hold the likeliest nodes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.tree import Tree, TreeShape


@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash"])
@pytest.mark.parametrize(("depth", "topk", "total"), [(1, 3, 4), (3, 2, 6), (5, 4, 16), (4, 3, 100), (2, 4, 2)])
@torch.no_grad()
def test_draft_trees_are_trees(kit: SimpleNamespace, arch: str, depth: int, topk: int, total: int) -> None:
    draft = kit.random_draft(arch)
    table = torch.randn(kit.vocab, 64)
    state = draft.begin(64)
    root = state.extend(table[:6], torch.randn(5, draft.config.feature_size))

    def logits(output: Tensor) -> Tensor:
        return draft.logits(output, lambda x: x @ table.T)

    tree = expand(state, 5, root, logits, lambda ids: table[ids], TreeShape(depth, topk, total))
    possible = topk + (depth - 1) * topk * topk
    assert len(tree.tokens) == min(total, 1 + possible)
    assert tree.parents[0] == -1
    for node, parent in enumerate(tree.parents[1:], 1):
        assert 0 <= parent < node
        assert len(tree.path(node)) <= depth + 1
    for node in range(len(tree.tokens)):
        tokens = [tree.tokens[child] for child in tree.children(node)]
        assert len(set(tokens)) == len(tokens) <= topk
    greedy = int(logits(root[:1]).argmax())
    assert tree.tokens[tree.children(0)[0]] == greedy, "the likeliest token comes first"


@torch.no_grad()
def test_a_tree_contains_the_chain(kit: SimpleNamespace) -> None:
    """With room for everything, following first children is greedy chain drafting."""
    draft, table = kit.random_draft(), torch.randn(kit.vocab, 64)
    grown = []
    for shape in (TreeShape(4), TreeShape(4, 3, 1000)):
        state = draft.begin(96)
        root = state.extend(table[:6], torch.randn(5, 64, generator=torch.Generator().manual_seed(2)))
        tree = expand(
            state, 5, root, lambda x: draft.logits(x, lambda f: 0.05 * f @ table.T), lambda i: table[i], shape
        )
        grown.append(tree)
    chain, tree = grown
    assert chain.parents == [-1, 0, 1, 2, 3]
    node, followed = 0, [5]
    for _ in range(4):
        likeliest = [child for child in tree.children(node) if tree.tokens[child] == chain.tokens[len(followed)]]
        if not likeliest:
            break
        node = likeliest[0]
        followed.append(tree.tokens[node])
    assert followed[:2] == chain.tokens[:2]


def test_shapes_from_text() -> None:
    assert TreeShape.parse(None, None) == TreeShape(3)
    assert TreeShape.parse(5, None) == TreeShape(5)
    assert TreeShape.parse(None, "6,4,32") == TreeShape(6, 4, 32)
    for chain, tree in ((2, "6,4,32"), (None, "6,4"), (None, "a,b,c"), (None, "6,4,1"), (-1, None)):
        with pytest.raises(InputError):
            TreeShape.parse(chain, tree)


def test_paths_and_children() -> None:
    tree = Tree([7, 1, 2, 3, 4], [-1, 0, 0, 1, 3])
    assert tree.children(0) == [1, 2]
    assert tree.path(4) == [0, 1, 3, 4]
