"""What a step, a verify pass and a draft take on this machine, measured behind the text that is being decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from dfrot.draft.models.base import Draft
from dfrot.draft.models.state import DraftState
from dfrot.draft.proposal_head import proposal_head
from dfrot.generation.expand import expand
from dfrot.generation.target import Target
from dfrot.generation.tree import Tree, TreeShape

REPEATS = 5
LONG = 0.06  # seconds that repeats of one measurement may take together


class Latencies(Protocol):
    """Seconds. Implementations may measure when they are asked."""

    @property
    def step(self) -> float:
        """Of plain decoding: one token."""
        ...

    def verify(self, shape: TreeShape) -> float:
        """Of the target's pass over the guesses of a shape and their root."""
        ...

    def draft(self, shape: TreeShape) -> float:
        """Of taking a token over and drafting a shape."""
        ...


class LatencyProbe:
    """Measures at the first question, remembers, and leaves cache and state as they were."""

    def __init__(
        self,
        target: Target,
        draft: Draft,
        state: DraftState,
        cache: Any,
        feature: torch.Tensor,
        place: torch.Tensor,
        token: int,
    ) -> None:
        """cache: holds a text, state: all its slots; token: what comes next, `feature` [1, f] and `place` int64 [1]:
        what the draft needs to take it over."""
        self.target, self.state, self.cache = target, state, cache
        self.feature, self.place, self.token = feature, place, token
        self.past, self.mark = int(cache.get_seq_length()), state.mark()
        self.embedded, of_target = target.embed(torch.tensor([token])), proposal_head(target, draft)
        self.head: Callable[[torch.Tensor], torch.Tensor] = lambda outputs: draft.logits(outputs, of_target)
        self.known: dict[object, float] = {}
        self.grown: dict[TreeShape, tuple[int, ...]] = {}  # parents of the nodes of trees
        self.spent = 0.0  # seconds that measuring took

    @classmethod
    @torch.inference_mode()
    def behind(cls, target: Target, draft: Draft, prompt: Sequence[int], room: int) -> LatencyProbe:
        """Behind a prompt of at least one token, with room for so many slots of the draft."""
        cache, ids = target.start(), torch.tensor(prompt)
        features, _ = target.prefill(ids, cache)
        state = draft.begin(len(prompt) + room)
        state.extend(target.embed(ids), features[:-1])
        return cls(target, draft, state, cache, features[-1:], torch.tensor([len(prompt)]), prompt[-1])

    @property
    def step(self) -> float:
        return self._of("step", self._step)

    def verify(self, shape: TreeShape) -> float:
        if shape.topk > 1:
            self.draft(shape)  # whose tree it is
        parents = tuple(range(-1, shape.depth)) if shape.topk == 1 else self.grown[shape]
        return self._of(parents, lambda: self._verify(list(parents)))

    def draft(self, shape: TreeShape) -> float:
        def grow() -> None:
            self.grown[shape] = tuple(self._tree(shape).parents)

        return self._of(shape, grow)

    def _step(self) -> None:
        self.target.step(self.token, self.cache)
        self.target.keep(self.cache, self.past, 1, [])

    def _verify(self, parents: list[int]) -> None:
        self.target.verify([self.token] * len(parents), parents, self.cache)
        self.target.keep(self.cache, self.past, len(parents), [])

    def _tree(self, shape: TreeShape) -> Tree:
        root = self.state.extend(self.embedded, self.feature, self.place)
        found = expand(self.state, self.token, root, self.head, self.target.embed, shape)
        self.state.back(self.mark)
        return found

    @torch.inference_mode()
    def _of(self, what: object, work: Callable[[], Any]) -> float:
        """The fastest of a few repeats; of one that takes long the first counts too."""
        if what not in self.known:
            times: list[float] = []
            begin = time.perf_counter()
            while len(times) <= REPEATS and (len(times) < 2 or time.perf_counter() - begin < LONG):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            self.known[what] = min(times)
            self.spent += time.perf_counter() - begin
        return self.known[what]
