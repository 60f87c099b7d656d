"""Speculative decoding: the text of plain decoding, several tokens per pass of the target.

Plain and speculative decoding pick tokens by the same rule from logits that agree to the last bit, stop at the same
token, and count the same way. In both, the first token comes from the prompt's pass and is in no metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from dfrot.errors import InputError
from dfrot.generation.output import GenerationOutput, StopCriteria, check_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.drafter import Drafter
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.latency_probe import LatencyProbe
from dfrot.generation.speculation.ngram_policy import NgramPolicy
from dfrot.generation.speculation.ngram_sequence import NgramSequence
from dfrot.generation.speculation.policy import AdaptivePolicy
from dfrot.generation.speculation.sequence import SpeculativeSequence
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs

SPARE_SLOTS = 2  # in the draft's cache: the first new token, and the token that a latency probe appends


def speculative(
    target: Target,
    drafter: Drafter | NgramSettings,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy | NgramPolicy,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> GenerationOutput:
    """Continue a prompt of token ids: greedily the same text as `plain`, sampling from the same distribution.

    drafter: a draft, or settings of look-up drafting. shape: of every round (where look-up drafting finds a match), or
    the drafter's policy, which measures, observes the text, and may end in plain decoding. Raises InputError for a
    prompt that does not fit, and for look-up drafting with trees."""
    out = GenerationOutput()
    for _ in speculative_steps(target, drafter, prompt, stop, sampling, shape, out, seed, images):
        pass
    return out


@torch.inference_mode()
def speculative_steps(
    target: Target,
    drafter: Drafter | NgramSettings,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy | NgramPolicy,
    out: GenerationOutput,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> Iterator[None]:
    """`speculative` into `out`, pausing after every round. Steps of several generations may be interleaved."""
    check_prompt(target, prompt, stop, images)
    sequence: SpeculativeSequence
    if isinstance(drafter, NgramSettings):
        if isinstance(shape, AdaptivePolicy):
            raise TypeError("a policy of draft models cannot choose lengths for look-up drafting")
        if isinstance(shape, TreeShape):
            refuse_tree(shape)
        sequence = NgramSequence(target, drafter, prompt, stop, sampling, shape, out, seed, images)
    else:
        if isinstance(shape, NgramPolicy):
            raise TypeError("a policy of look-up drafting cannot choose shapes for a draft model")
        sequence = _ModelSequence(target, drafter, prompt, stop, sampling, shape, out, seed, images)
    yield
    begin = time.perf_counter()
    while not stop.ends(out.tokens):
        tokens = sequence.advance()
        out.rounds += 1
        for token in tokens:
            out.tokens.append(token)
            out.emitted += 1
            if stop.ends(out.tokens):
                break
        yield
    out.seconds = time.perf_counter() - begin


def refuse_depth(drafter: Drafter, shape: TreeShape) -> None:
    """Raise InputError for a shape with more levels than a draft can propose."""
    if drafter.max_depth is not None and shape.depth > drafter.max_depth:
        field = "chain" if shape.topk == 1 else "tree"
        raise InputError(
            f"`{field}`: {shape.name} is deeper than the {drafter.max_depth} tokens that this draft proposes at once",
            field=field,
            limit=drafter.max_depth,
        )


def refuse_tree(shape: TreeShape) -> None:
    """Raise InputError for a shape that look-up drafting does not have."""
    if shape.topk > 1:
        raise InputError(f"`tree`: draft ngram proposes chains; give a `chain` instead of {shape.name}", field="tree")


class _ModelSequence(SpeculativeSequence):
    """Tokens are proposed by a draft model: its state, and what it has not read yet."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        prompt: Sequence[int],
        stop: StopCriteria,
        sampling: Sampling,
        shape: TreeShape | AdaptivePolicy,
        out: GenerationOutput,
        seed: int,
        images: ImageInputs | None,
    ) -> None:
        """Run the prompt, pick the first token, and let a policy choose its shape."""
        super().__init__(target, prompt, stop, sampling, out, seed)
        prefill = self.begin(images)
        self.policy = shape if isinstance(shape, AdaptivePolicy) else None
        self._fixed_shape = None if isinstance(shape, AdaptivePolicy) else shape
        if self._fixed_shape is not None:
            refuse_depth(drafter, self._fixed_shape)
        max_drafted = shape.max_drafted if isinstance(shape, AdaptivePolicy) else shape.drafted
        self.state = drafter.begin(len(prompt) + stop.max_new_tokens + max_drafted + SPARE_SLOTS)
        self.logits, self.token_ids = drafter.proposal_logits(target), drafter.token_ids
        # verified positions that the draft has not read: features, embeddings, and positions if not consecutive
        self.features = prefill.features
        self.embeddings, self.positions = prefill.draft_inputs(target, out.tokens[-1])
        if self.policy is not None:
            self._start_policy(self.policy, drafter)

    @property
    def shape(self) -> TreeShape | None:
        """The shape of the next round; None for a plain step."""
        return self._fixed_shape if self.policy is None else self.policy.shape

    def _start_policy(self, policy: AdaptivePolicy, drafter: Drafter) -> None:
        """Let the policy choose, from latencies measured behind the prompt where it needs them."""
        target, length = self.target, len(self.prompt)
        room = min(self.stop.max_new_tokens, target.max_length - length) - 1  # tokens that a round may draft
        if drafter.max_depth is not None:
            room = min(room, drafter.max_depth)
        probe = None
        if policy.needs_latencies and room > 0:
            positions = None if self.positions is None else self.positions[:-1]
            self.state.extend(self.embeddings[:-1], self.features[:-1], positions)
            self.embeddings, self.features = self.embeddings[-1:], self.features[-1:]
            self.positions = torch.tensor([length])
            token = self.out.tokens[-1]
            probe = LatencyProbe(target, drafter, self.state, self.cache, self.features, self.positions, token)
        policy.start(probe, None if probe is None else lambda: probe.spent, room, target.max_length - length)

    def advance(self) -> list[int]:
        """See SpeculativeSequence. A policy that gave drafting up never takes it up again."""
        shape = self.shape
        if shape is None:
            return self.plain_step()
        start = time.perf_counter()
        root = self.state.extend(self.embeddings, self.features, self.positions)
        limited = TreeShape(min(shape.depth, self.room), shape.topk, shape.total)
        tree = expand(self.state, self.out.tokens[-1], root, self.logits, self.target.embed, limited, self.token_ids)
        path, tokens, self.features = self.verified(tree, start)
        self.embeddings, self.positions = self.target.embed(torch.tensor(tokens)), None
        if self.policy is not None:
            self.policy.record_round(tree, path)
        return tokens
