"""Speculative decoding as one call on a loaded model, and as the `custom_generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dfrot.draft.models.base import Draft
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation_policy import AdaptivePolicy, MeasuredShape
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import custom_generate_hook
from dfrot.generation.tree import TreeShape
from dfrot.vision.image_inputs import ImageInputs

GREEDY = Sampling()
MEASURING = 0.1  # of the time that plain decoding takes, for measuring shapes


def chooser(
    draft: Draft, limits: StopCriteria, sampling: Sampling, options: Sequence[MeasuredShape] = ()
) -> AdaptivePolicy:
    """The choice for one text, measured when it begins unless `options` of another text are given."""
    return AdaptivePolicy(draft.rates, sampling.greedy, MEASURING * limits.max_new_tokens, options)


def generate(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling = GREEDY,
    shape: TreeShape | AdaptivePolicy | None = None,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> tuple[GenerationOutput, str]:
    """Decode with the shape that suits this machine and text, or plainly where none pays. Returns the output and how
    it was made.

    shape: no choice, this one; or the choice, whose `to_dict` tells more afterwards. The draft's `rates` say how often
    its guesses stand: a draft without them decodes plainly unless it is given a shape."""
    shape = shape or chooser(draft, limits, sampling)
    if isinstance(shape, AdaptivePolicy) and shape.rates is None:
        return plain(target, prompt, limits, sampling, seed, images), shape.why()
    out = speculative(target, draft, prompt, limits, sampling, shape, seed, images)
    told = shape.why() if isinstance(shape, AdaptivePolicy) else f"speculative, {shape.name}"
    return out, f"{told}, tau {out.tau:.2f}" if out.accepted else told


def custom_generate(
    model: Any,
    draft: Draft,
    shape: TreeShape | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda how: None,
) -> Any:
    """For a loaded model: `model.generate(ids, custom_generate=custom_generate(model, draft), max_new_tokens=64)`.

    Greedy and sampling, with whatever logits processors `generate` was asked for; rows of a batch one by one, images in
    a single row (`model.generate(**processor(...), ...)`). Without a shape the first row's measurements serve all.
    report: is told of every row how it was decoded."""
    target = Target(model, draft.config.aux_layers)
    options: list[MeasuredShape] = []

    def decode(
        prompt: list[int], longest: int, eos: frozenset[int], processor: Any, do_sample: bool, given: dict[str, Any]
    ) -> list[int]:
        sampling = Sampling(1.0 if do_sample else 0.0, processors=() if processor is None else (processor,))
        limits = StopCriteria(longest, eos)
        choice = chooser(draft, limits, sampling, options) if shape is None else None
        images = ImageInputs(given) if given else None
        out, how = generate(target, draft, prompt, limits, sampling, choice or shape, seed, images)
        if choice is not None:
            options[:] = choice.options
        report(how)
        return out.tokens

    return custom_generate_hook(decode)
