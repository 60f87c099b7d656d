"""Look-up drafting: draft tokens are what followed the newest tokens earlier in the prompt or in the text written.

No model and no files are needed. The idea is that of prompt lookup decoding (and, with a table of the prompt's n-grams,
of LLMA, arXiv 2304.04487); verification is that of every draft.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.latency_probe import TargetProbe
from dfrot.generation.speculation.ngram_index import NgramIndex
from dfrot.generation.speculation.ngram_policy import NgramPolicy
from dfrot.generation.speculation.sequence import SpeculativeSequence
from dfrot.generation.speculation.tree import Tree, TreeShape
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


class NgramSequence(SpeculativeSequence):
    """A text and the index of its n-grams."""

    def __init__(
        self,
        target: Target,
        settings: NgramSettings,
        prompt: Sequence[int],
        stop: StopCriteria,
        sampling: Sampling,
        shape: TreeShape | NgramPolicy,
        out: GenerationOutput,
        seed: int,
        images: ImageInputs | None,
    ) -> None:
        """Run the prompt, pick the first token, and measure where the policy needs it.

        shape: a chain, whose length every match gets, or a policy."""
        super().__init__(target, prompt, stop, sampling, out, seed)
        self.begin(images)
        self.index = NgramIndex(settings.longest, [*prompt, *out.tokens])
        self.policy = shape if isinstance(shape, NgramPolicy) else None
        self.fixed = 0 if isinstance(shape, NgramPolicy) else shape.depth
        if self.policy is not None:
            room = min(stop.max_new_tokens, target.max_length - len(prompt)) - 1
            needed = self.policy.needs_latencies and room > 0
            probe = TargetProbe(target, self.cache, out.tokens[-1]) if needed else None
            spent = None if probe is None else lambda: probe.spent
            self.policy.start(probe, spent, room, target.max_length - len(prompt))

    def advance(self) -> list[int]:
        """See SpeculativeSequence."""
        start = time.perf_counter()
        match = self.index.match()
        count = 0
        if match is not None:
            count = min(self.fixed, self.room) if self.policy is None else self.policy.length(match.length, self.room)
        if match is None or not count:
            self.out.draft_seconds += time.perf_counter() - start
            tokens = self.plain_step()
            if self.policy is not None:
                self.policy.record_step()
        else:
            tree = Tree([self.index.tokens[-1], *self.index.continuation(match, count)], list(range(-1, count)))
            path, tokens, _ = self.verified(tree, start)
            if self.policy is not None:
                self.policy.record_round(match.length, count, len(path) - 1)
        self.index.extend(tokens)
        return tokens
