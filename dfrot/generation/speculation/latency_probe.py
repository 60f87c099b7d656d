"""Durations of a plain step, of verify passes and of drafting on this machine, measured behind the text at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from dfrot.generation.speculation.drafter import Drafter, DraftState
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.tree import Tree, TreeShape
from dfrot.generation.target import Target

REPEATS = 5  # of one measurement, after the first run
LONG = 0.06  # seconds after which a measurement is not repeated any more


class Latencies(Protocol):
    """Durations in seconds. Implementations may measure them when they are read."""

    @property
    def step(self) -> float:
        """One step of plain decoding."""
        ...

    def verify(self, shape: TreeShape) -> float:
        """The target's pass over a tree of this shape."""
        ...

    def draft(self, shape: TreeShape) -> float:
        """Extending the draft's state by one token and drafting a tree of this shape."""
        ...


class TargetProbe:
    """Measures the target's passes when they are first asked for, remembers them, and leaves the cache as it was."""

    def __init__(self, target: Target, cache: Any, token: int) -> None:
        """cache: holds a text. token: the next token."""
        self.target, self.cache, self.token = target, cache, token
        self.past = int(cache.get_seq_length())
        self.known: dict[object, float] = {}
        self.spent = 0.0  # seconds that measuring took so far

    @classmethod
    def behind(cls, target: Target, prompt: Sequence[int]) -> TargetProbe:
        """A probe behind a prompt of at least one token."""
        cache = target.start()
        target.prefill(torch.tensor(prompt), cache)
        return cls(target, cache, prompt[-1])

    @property
    def step(self) -> float:
        """One step of plain decoding, in seconds."""
        return self._measure("step", self._step)

    def verify_chain(self, length: int) -> float:
        """A verify pass over a chain of `length` draft tokens, in seconds."""
        return self._verify_time(tuple(range(-1, length)))

    def _verify_time(self, parents: tuple[int, ...]) -> float:
        return self._measure(parents, lambda: self._verify(list(parents)))

    def _step(self) -> None:
        self.target.step(self.token, self.cache)
        self.target.keep(self.cache, self.past, 1, [])

    def _verify(self, parents: list[int]) -> None:
        self.target.verify([self.token] * len(parents), parents, self.cache)
        self.target.keep(self.cache, self.past, len(parents), [])

    @torch.inference_mode()
    def _measure(self, key: object, run: Callable[[], Any]) -> float:
        """The shortest of a few runs. The first counts too, so that something slow need not run often."""
        if key not in self.known:
            durations: list[float] = []
            begin = time.perf_counter()
            while len(durations) <= REPEATS and (len(durations) < 2 or time.perf_counter() - begin < LONG):
                start = time.perf_counter()
                run()
                durations.append(time.perf_counter() - start)
            self.known[key] = min(durations)
            self.spent += time.perf_counter() - begin
        return self.known[key]


class LatencyProbe(TargetProbe):
    """Measures drafting by a model, too, and leaves its state as it was."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        state: DraftState,
        cache: Any,
        feature: torch.Tensor,
        position: torch.Tensor,
        token: int,
    ) -> None:
        """cache: holds a text. state: holds the same text. token: the next token, which the state does not hold yet;
        feature [1, f] and position int64 [1] are what the draft needs to append it."""
        super().__init__(target, cache, token)
        self.state, self.mark = state, state.mark()
        self.feature, self.position = feature, position
        self.embedding = target.embed(torch.tensor([token]))
        self.logits, self.token_ids = drafter.proposal_logits(target), drafter.token_ids
        self.tree_parents: dict[TreeShape, tuple[int, ...]] = {}  # of drafted trees

    @classmethod
    @torch.inference_mode()
    def after_prompt(cls, target: Target, drafter: Drafter, prompt: Sequence[int], room: int) -> LatencyProbe:
        """A probe behind a prompt of at least one token, with room for `room` more positions of the draft."""
        cache, ids = target.start(), torch.tensor(prompt)
        features, _ = target.prefill(ids, cache)
        state = drafter.begin(len(prompt) + room)
        state.extend(target.embed(ids), features[:-1])
        return cls(target, drafter, state, cache, features[-1:], torch.tensor([len(prompt)]), prompt[-1])

    def verify(self, shape: TreeShape) -> float:
        """A verify pass over a tree of this shape, in seconds."""
        if shape.topk == 1:
            return self.verify_chain(shape.depth)
        self.draft(shape)  # which drafts the tree to verify
        return self._verify_time(self.tree_parents[shape])

    def draft(self, shape: TreeShape) -> float:
        """Drafting a tree of this shape, in seconds."""

        def draft_once() -> None:
            self.tree_parents[shape] = tuple(self._tree(shape).parents)

        return self._measure(shape, draft_once)

    def _tree(self, shape: TreeShape) -> Tree:
        root = self.state.extend(self.embedding, self.feature, self.position)
        tree = expand(self.state, self.token, root, self.logits, self.target.embed, shape, self.token_ids)
        self.state.back(self.mark)
        return tree
