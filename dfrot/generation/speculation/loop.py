"""Speculative decoding: the text of plain decoding, several tokens per pass of the target.

Plain and speculative decoding pick tokens by the same rule from logits that agree to the last bit, stop at the same
token, and count the same way. In both, the first token comes from the prompt's pass and is in no metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from dfrot.generation.output import GenerationOutput, StopCriteria, check_prompt
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.drafter import Drafter
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.latency_probe import LatencyProbe
from dfrot.generation.speculation.policy import AdaptivePolicy
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.speculation.verify import verify
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs

SPARE_SLOTS = 2  # in the draft's cache: the first new token, and the token that a latency probe appends


def speculative(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> GenerationOutput:
    """Continue a prompt of token ids: greedily the same text as `plain`, sampling from the same distribution.

    shape: of every round, or a policy that measures, observes the text, and may end in plain decoding. Raises
    InputError for a prompt that does not fit."""
    out = GenerationOutput()
    for _ in speculative_steps(target, drafter, prompt, stop, sampling, shape, out, seed, images):
        pass
    return out


@torch.inference_mode()
def speculative_steps(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy,
    out: GenerationOutput,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> Iterator[None]:
    """`speculative` into `out`, pausing after every round. Steps of several generations may be interleaved."""
    check_prompt(target, prompt, stop, images)
    sequence = _Sequence(target, drafter, prompt, stop, sampling, shape, out, seed, images)
    yield
    begin = time.perf_counter()
    while not stop.ends(out.tokens):
        tokens = sequence.plain_step() if sequence.shape is None else sequence.round(sequence.shape)
        out.rounds += 1
        for token in tokens:
            out.tokens.append(token)
            out.emitted += 1
            if stop.ends(out.tokens):
                break
        yield
    out.seconds = time.perf_counter() - begin


class _Sequence:
    """One text while it is decoded: the target's cache, the draft's state, and what the draft has not read yet."""

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
        self.target, self.stop, self.sampling, self.out = target, stop, sampling, out
        self.prompt = prompt
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = target.start()
        prefill = prefill_prompt(target, prompt, self.cache, images)
        self.cached = list(prompt)  # tokens in the cache; the newest token is not among them yet
        out.tokens.append(sampling.pick(prefill.logits, prompt, self.generator))
        self.policy = shape if isinstance(shape, AdaptivePolicy) else None
        self._fixed_shape = None if isinstance(shape, AdaptivePolicy) else shape
        max_drafted = shape.max_drafted if isinstance(shape, AdaptivePolicy) else shape.drafted
        self.state = drafter.begin(len(prompt) + stop.max_new_tokens + max_drafted + SPARE_SLOTS)
        self.logits = drafter.proposal_logits(target)
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
        probe = None
        if policy.needs_latencies and room > 0:
            positions = None if self.positions is None else self.positions[:-1]
            self.state.extend(self.embeddings[:-1], self.features[:-1], positions)
            self.embeddings, self.features = self.embeddings[-1:], self.features[-1:]
            self.positions = torch.tensor([length])
            token = self.out.tokens[-1]
            probe = LatencyProbe(target, drafter, self.state, self.cache, self.features, self.positions, token)
        policy.start(probe, None if probe is None else lambda: probe.spent, room, target.max_length - length)

    def plain_step(self) -> list[int]:
        """One token by the target alone, where drafting does not pay (any more)."""
        start = time.perf_counter()
        logits = self.target.step(self.out.tokens[-1], self.cache)
        prefix = [*self.prompt, *self.out.tokens] if self.sampling.needs_prefix else ()
        token = self.sampling.pick(logits, prefix, self.generator)
        self.out.verify_seconds += time.perf_counter() - start
        return [token]

    def round(self, shape: TreeShape) -> list[int]:
        """Draft, verify and accept. Returns the accepted tokens and the bonus token."""
        target, out = self.target, self.out
        start = time.perf_counter()
        root = self.state.extend(self.embeddings, self.features, self.positions)
        tree = expand(self.state, out.tokens[-1], root, self.logits, target.embed, self._limited(shape))
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
        self.features = features[result.path]
        self.embeddings, self.positions = target.embed(torch.tensor(tokens)), None
        if self.policy is not None:
            self.policy.record_round(tree, result.path)
        return tokens

    def _limited(self, shape: TreeShape) -> TreeShape:
        """`shape`, no deeper than the tokens that are still wanted and that the context holds."""
        wanted = self.stop.max_new_tokens - len(self.out.tokens) - 1
        room = min(wanted, self.target.max_length - len(self.cached) - 1)
        return TreeShape(max(0, min(shape.depth, room)), shape.topk, shape.total)
