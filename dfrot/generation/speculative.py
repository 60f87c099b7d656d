"""Generating text: plainly, and speculatively with the same result.

Both loops pick tokens by the same rule from logits that agree to the last bit, stop at the same token, and count
the same way. The first token comes from the prompt's pass in both and is in no metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from dfrot.draft.models.base import Draft
from dfrot.draft.proposal_head import proposal_head
from dfrot.generation.expand import expand
from dfrot.generation.latency_probe import LatencyProbe
from dfrot.generation.output import GenerationOutput, StopCriteria, _check
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation_policy import AdaptivePolicy
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape
from dfrot.generation.verify import verify
from dfrot.vision.image_inputs import ImageInputs


def speculative(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> GenerationOutput:
    """The same text (greedy) or the same distribution (sampling), several tokens per pass of the target.

    shape: of every round, or a choice that measures, looks on and may end in plain decoding."""
    out = GenerationOutput()
    for _ in speculative_steps(target, draft, prompt, limits, sampling, shape, out, seed, images):
        pass
    return out


@torch.inference_mode()
def speculative_steps(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling,
    shape: TreeShape | AdaptivePolicy,
    out: GenerationOutput,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> Iterator[None]:
    """`speculative` into `out`, pausing whenever there are new tokens. Steps of several texts may take turns."""
    _check(target, prompt, limits, images)
    generator = torch.Generator().manual_seed(seed)
    cache = target.start()
    ran = prefill_prompt(target, prompt, cache, images)
    features = ran.features
    committed = list(prompt)  # tokens in the cache
    out.tokens.append(sampling.pick(ran.logits, prompt, generator))
    choice = shape if isinstance(shape, AdaptivePolicy) else None
    room = min(limits.max_new_tokens, target.max_length - len(prompt)) - 1  # tokens that a round may guess
    widest = shape.widest if isinstance(shape, AdaptivePolicy) else shape.depth * shape.topk
    state = draft.begin(len(prompt) + limits.max_new_tokens + widest + 2)
    slots, places = ran.slots(target, out.tokens[-1])  # that the draft has not computed

    of_target = proposal_head(target, draft)

    def head(outputs: torch.Tensor) -> torch.Tensor:
        return draft.logits(outputs, of_target)

    if choice is not None:
        meter = None
        if choice.measures and room > 0:
            state.extend(slots[:-1], features[:-1], None if places is None else places[:-1])
            slots, features, places = slots[-1:], features[-1:], torch.tensor([len(prompt)])
            meter = LatencyProbe(target, draft, state, cache, features, places, out.tokens[-1])
        choice.start(meter, None if meter is None else lambda: meter.spent, room, target.max_length - len(prompt))
    yield
    begin = time.perf_counter()
    while not limits.ends(out.tokens):
        start = time.perf_counter()
        current = shape.shape if isinstance(shape, AdaptivePolicy) else shape
        if current is None:  # drafting does not pay, or no longer
            logits = target.step(out.tokens[-1], cache)
            told = sampling.pick(logits, [*prompt, *out.tokens] if sampling.needs_prefix else (), generator)
            out.verify_seconds += time.perf_counter() - start
            fresh = [told]
        else:
            room = min(limits.max_new_tokens - len(out.tokens) - 1, target.max_length - len(committed) - 1)
            now = TreeShape(max(0, min(current.depth, room)), current.topk, current.total)
            root = state.extend(slots, features, places)
            tree = expand(state, out.tokens[-1], root, head, target.embed, now)
            drafted = time.perf_counter()
            found, logits = target.verify(tree.tokens, tree.parents, cache)
            verdict = verify(tree, logits, committed, sampling, generator)
            target.keep(cache, len(committed), len(tree.tokens), verdict.path)
            features = found[verdict.path]
            out.draft_seconds += drafted - start
            out.verify_seconds += time.perf_counter() - drafted
            out.nodes += len(tree.tokens)
            out.forced += verdict.forced
            out.accepted.append(len(verdict.path) - 1)
            committed += [tree.tokens[node] for node in verdict.path]
            fresh = [*(tree.tokens[node] for node in verdict.path[1:]), verdict.bonus]
            slots, places = target.embed(torch.tensor(fresh)), None
            if choice is not None:
                choice.saw(tree, verdict.path)
        out.rounds += 1
        for token in fresh:
            out.tokens.append(token)
            out.emitted += 1
            if limits.ends(out.tokens):
                break
        yield
    out.seconds = time.perf_counter() - begin
