"""Speculative decoding as one call on a loaded model, and as the `custom_generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dfrot.draft.models.base import Draft
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.drafter import Drafter
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.policies import Policy, described, policy_of
from dfrot.generation.speculation.policy import AdaptivePolicy
from dfrot.generation.speculation.shape_search import MeasuredShape
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import custom_generate_hook
from dfrot.vision.image_inputs import ImageInputs

GREEDY = Sampling()
MEASURING_SHARE = 0.1  # of the time that plain decoding of the text would take: for measuring shapes


def policy_for(
    drafter: Drafter | NgramSettings, stop: StopCriteria, sampling: Sampling, options: Sequence[MeasuredShape] = ()
) -> Policy:
    """The speculation policy of one text. options: shapes measured for another text; empty to measure when the text
    begins."""
    return policy_of(drafter, sampling.greedy, MEASURING_SHARE * stop.max_new_tokens, options)


def generate(
    target: Target,
    drafter: Drafter | NgramSettings,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling = GREEDY,
    shape: TreeShape | Policy | None = None,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> tuple[GenerationOutput, str]:
    """Decode with the shape that suits this machine and text, or plainly where drafting does not pay. Returns the
    output and how it was decoded.

    shape: a fixed one, or a policy, whose `to_dict` tells more afterwards; None makes a policy. A draft without
    acceptance rates decodes plainly unless it is given a shape."""
    shape = shape or policy_for(drafter, stop, sampling)
    if isinstance(shape, AdaptivePolicy) and shape.rates is None:
        return plain(target, prompt, stop, sampling, seed, images), shape.why()
    out = speculative(target, drafter, prompt, stop, sampling, shape, seed, images)
    how = described(drafter, shape) if isinstance(shape, TreeShape) else shape.why()
    return out, f"{how}, tau {out.tau:.2f}" if out.accepted else how


def custom_generate(
    model: Any,
    draft: Draft | NgramSettings,
    shape: TreeShape | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda how: None,
) -> Any:
    """For a loaded model: `model.generate(ids, custom_generate=custom_generate(model, draft), max_new_tokens=64)`.

    Serves greedy decoding and sampling with whatever logits processors `generate` was asked for, the rows of a batch
    one by one, and images in a single row (`model.generate(**processor(...), ...)`).

    Args:
        model: a loaded transformers model.
        draft: its draft, or `NgramSettings()` for look-up drafting.
        shape: of draft trees; None measures at the first row which suits this machine.
        seed: of sampling.
        report: called for every row with how it was decoded.
    """
    target = Target(model, () if isinstance(draft, NgramSettings) else draft.aux_layers)
    options: list[MeasuredShape] = []

    def decode(
        prompt: list[int], longest: int, eos: frozenset[int], processor: Any, do_sample: bool, tensors: dict[str, Any]
    ) -> list[int]:
        sampling = Sampling(1.0 if do_sample else 0.0, processors=() if processor is None else (processor,))
        stop = StopCriteria(longest, eos)
        policy = policy_for(draft, stop, sampling, options) if shape is None else None
        images = ImageInputs(tensors) if tensors else None
        out, how = generate(target, draft, prompt, stop, sampling, policy or shape, seed, images)
        if policy is not None:
            options[:] = policy.options
        report(how)
        return out.tokens

    return custom_generate_hook(decode)
