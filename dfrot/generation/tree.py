"""What a round of drafting proposes: a tree of tokens, a chain being the tree without branches."""

from __future__ import annotations

from dataclasses import dataclass, field

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
