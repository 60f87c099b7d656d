"""Generating text: plainly, and speculatively with the same result.

Both loops pick tokens by the same rule from logits that agree to the last bit, stop at the same token, and count
the same way. The first token comes from the prompt's pass in both and is in no metric.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from dfrot.draft.models.base import Draft
from dfrot.draft.proposal_head import proposal_head
from dfrot.errors import InputError
from dfrot.generation.expand import expand
from dfrot.generation.latency_probe import LatencyProbe
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation_policy import AdaptivePolicy
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape
from dfrot.generation.verify import verify
from dfrot.vision.image_inputs import ImageInputs


@dataclass(frozen=True)
class StopCriteria:
    """max_new_tokens: exact, unless something stops earlier. eos: ids that end (and stay in the output). stops:
    strings; the token that completes one is the last. decode: ids -> text, needed for `stops`."""

    max_new_tokens: int = 128
    eos: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: at least 1 is needed")
        if self.stops and self.decode is None:
            raise InputError("stop strings need a tokenizer; give the checkpoint's folder")

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of `tokens` (all of them new) is the last one of the output."""
        if len(tokens) >= self.max_new_tokens or tokens[-1] in self.eos:
            return True
        if not self.stops or self.decode is None:
            return False
        # a token adds at least one byte, so no stop string reaches further back than its length
        tail = self.decode(tokens[-(max(len(stop.encode()) for stop in self.stops) + 4) :])
        return any(stop in tail for stop in self.stops)


@dataclass
class GenerationOutput:
    """tokens: without the prompt. rounds, accepted: verify passes, and how many guesses each accepted. emitted: tokens
    that the passes gave (the first token and what was cut off not counted). Seconds: of the whole decoding behind the
    prompt, of it in the draft and in the target."""

    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    emitted: int = 0
    accepted: list[int] = field(default_factory=list)
    nodes: int = 0
    forced: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def tau(self) -> float:
        """Acceptance length: tokens per verify pass, the bonus counted."""
        return self.emitted / self.rounds if self.rounds else 0.0


def _check(target: Target, prompt: Sequence[int], limits: StopCriteria, images: ImageInputs | None) -> None:
    if not prompt:
        raise InputError("the prompt holds no token; give some text")
    if images is None and (max(prompt) >= target.vocab_size or min(prompt) < 0):
        raise InputError(f"the prompt holds token id {max(prompt)}, the vocabulary ends at {target.vocab_size}")
    if len(prompt) + limits.max_new_tokens > target.max_length:
        raise InputError(
            f"{len(prompt)} prompt tokens and --max-new-tokens {limits.max_new_tokens} exceed the target's context of "
            f"{target.max_length}; shorten one of them"
        )


def plain(
    target: Target,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> GenerationOutput:
    """One token per pass of the target."""
    out = GenerationOutput()
    for _ in plain_steps(target, prompt, limits, sampling, out, seed, images):
        pass
    return out


@torch.inference_mode()
def plain_steps(
    target: Target,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling,
    out: GenerationOutput,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> Iterator[None]:
    """`plain` into `out`, pausing whenever there are new tokens. Steps of several texts may take turns."""
    _check(target, prompt, limits, images)
    generator = torch.Generator().manual_seed(seed)
    cache = target.start()
    first = prefill_prompt(target, prompt, cache, images).logits
    out.tokens.append(sampling.pick(first, prompt, generator))
    yield
    begin = time.perf_counter()
    while not limits.ends(out.tokens):
        logits = target.step(out.tokens[-1], cache)
        out.tokens.append(sampling.pick(logits, [*prompt, *out.tokens] if sampling.needs_prefix else (), generator))
        out.rounds += 1
        out.emitted += 1
        yield
    out.seconds = out.verify_seconds = time.perf_counter() - begin


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
