"""One text while it is decoded speculatively: what is the same whoever proposes the tokens."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.prompt import PrefilledPrompt, prefill_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.tree import Tree
from dfrot.generation.speculation.verify import verify
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


class SpeculativeSequence(ABC):
    """The target's cache, the tokens in it, and the two ways forward: a plain step, or a verified draft tree."""

    def __init__(
        self,
        target: Target,
        prompt: Sequence[int],
        stop: StopCriteria,
        sampling: Sampling,
        out: GenerationOutput,
        seed: int,
    ) -> None:
        self.target, self.stop, self.sampling, self.out = target, stop, sampling, out
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = target.start()
        self.prompt = prompt
        self.cached: list[int] = []  # tokens in the cache; the newest token is not among them yet

    def begin(self, images: ImageInputs | None) -> PrefilledPrompt:
        """Run the prompt and pick the first token."""
        prefill = prefill_prompt(self.target, self.prompt, self.cache, images)
        self.cached = list(self.prompt)
        self.out.tokens.append(self.sampling.pick(prefill.logits, self.prompt, self.generator))
        return prefill

    @abstractmethod
    def advance(self) -> list[int]:
        """The tokens of the next round, or the token of a plain step."""

    @property
    def room(self) -> int:
        """Draft tokens that are still wanted and that the context holds, behind the newest token."""
        wanted = self.stop.max_new_tokens - len(self.out.tokens) - 1
        return max(0, min(wanted, self.target.max_length - len(self.cached) - 1))

    def plain_step(self) -> list[int]:
        """One token by the target alone."""
        start = time.perf_counter()
        newest = self.out.tokens[-1]
        logits = self.target.step(newest, self.cache)
        self.cached.append(newest)
        token = self.sampling.pick(logits, self.cached if self.sampling.needs_prefix else (), self.generator)
        self.out.verify_seconds += time.perf_counter() - start
        return [token]

    def verified(self, tree: Tree, start: float) -> tuple[list[int], list[int], Tensor]:
        """Verify a tree that was begun at `start` (of `time.perf_counter`), and keep what is accepted.

        Returns the accepted nodes from the root down, the new tokens (the accepted ones and the bonus token), and the
        target's features [n, f] at the accepted nodes."""
        target, out = self.target, self.out
        drafted = time.perf_counter()
        features, logits = target.verify(tree.tokens, tree.parents, self.cache)
        result = verify(tree, logits, self.cached, self.sampling, self.generator)
        target.keep(self.cache, len(self.cached), len(tree.tokens), result.path)
        out.draft_seconds += drafted - start
        out.verify_seconds += time.perf_counter() - drafted
        out.nodes += len(tree.tokens)
        out.forced += result.forced
        out.accepted.append(len(result.path) - 1)
        self.cached += [tree.tokens[node] for node in result.path]
        tokens = [*(tree.tokens[node] for node in result.path[1:]), result.bonus]
        return result.path, tokens, features[result.path]
