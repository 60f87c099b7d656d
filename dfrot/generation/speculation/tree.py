"""Draft trees: their shape, and the tokens of one round."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.errors import InputError

DEFAULT_CHAIN = 3  # draft tokens per round where neither a chain nor a tree is given


@dataclass(frozen=True)
class TreeShape:
    """The size of the draft trees of a round. A chain is a tree without branches."""

    depth: int
    """Levels of draft tokens below the root; 0 drafts nothing."""
    topk: int = 1
    """Children per node, and nodes per level that get children. 1 is a chain of `depth` draft tokens."""
    total: int = 0
    """Nodes of the tree that is verified, the root included. Not used for chains."""

    def __post_init__(self) -> None:
        if self.depth < 0 or self.topk < 1:
            raise InputError(f"draft tree {self.depth},{self.topk}: depth and top-k must be positive")
        if self.topk > 1 and self.total < 2:
            raise InputError(f"draft tree total {self.total}: at least the root and one draft token are needed")

    @property
    def name(self) -> str:
        """`chain 3` or `tree 5,4,16`."""
        return f"chain {self.depth}" if self.topk == 1 else f"tree {self.depth},{self.topk},{self.total}"

    @property
    def drafted(self) -> int:
        """Draft tokens whose children the draft may compute, at most: positions that a tree takes in its cache."""
        return self.depth * self.topk

    @property
    def nodes(self) -> int:
        """Rows of the verify pass, the root included."""
        return self.depth + 1 if self.topk == 1 else self.total

    @classmethod
    def parse(cls, chain: int | None, tree: str | None) -> TreeShape:
        """From a chain length, or from `depth,topk,total`; a chain of DEFAULT_CHAIN without either.

        Raises InputError where both are given or the text is malformed."""
        if tree is None:
            return cls(DEFAULT_CHAIN if chain is None else chain)
        if chain is not None:
            raise InputError("`chain` and `tree` exclude each other", field=("chain", "tree"))
        try:
            depth, topk, total = (int(part) for part in tree.split(","))
        except ValueError:
            raise InputError(f"`tree` {tree}: three numbers are needed, for instance 6,4,32", field="tree") from None
        return cls(depth, topk, total)


@dataclass
class Tree:
    """The draft tokens of one round. Nodes are in topological order, the root (node 0) first."""

    tokens: list[int]
    """Token id of every node."""
    parents: list[int] = field(default_factory=lambda: [-1])
    """Parent of every node; -1 for the root."""

    def children(self, node: int) -> list[int]:
        """The children of a node in the order in which they were proposed, the likeliest first."""
        return [child for child, parent in enumerate(self.parents) if parent == node and child]

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`, both included."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]
