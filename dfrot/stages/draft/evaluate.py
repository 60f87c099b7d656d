"""`dfq draft eval`: plain and speculative decoding of the same prompts, interleaved, compared token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.load import load_target_and_draft
from dfrot.draft.metrics import classify, first_difference, speeds, summary
from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import unfit
from dfrot.generation.load_target import end_token_ids
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.policies import Policy, start_behind
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.progress import Progress, silent
from dfrot.stages.draft.generate import policy_for
from dfrot.stages.draft.prompts import load_prompts
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot.vision.conversations import has_images
from dfrot.vision.prompts import PromptWithImages, load_questions, prompt_reader

WARM_UP_TOKENS = 8  # new tokens of a first, uncounted run per shape
CLASSIFY_ROWS = 8  # rows of the verify pass by which a difference is classified

OutputPair = tuple[GenerationOutput, GenerationOutput]
"""(plain, speculative)."""
ShapeOfText = Callable[[], TreeShape | Policy]
"""The shape, or a new policy, of one text."""


def evaluate(
    model: Path, draft: Path | NgramSettings, settings: DraftEvalSettings, progress: Progress = silent
) -> dict[str, Any]:
    """Decode every prompt plainly and with every shape. Returns JSON: {"shapes": {name: numbers}, "prompts", ...}.

    draft: a folder, or settings of look-up drafting.

    Greedy outputs are compared token by token (`identical`), and differences classified (`mismatches`). Sampled outputs
    differ by nature; of them only the numbers are given."""
    target, loaded = load_target_and_draft(model, draft, settings.draft_dtype, settings.force)
    stop = StopCriteria(settings.max_new_tokens)
    if has_images(settings.dataset):
        prompts = load_questions(settings.dataset, prompt_reader(model), settings.prompts, settings.keep)
        stop = StopCriteria(settings.max_new_tokens, end_token_ids(target))
    else:
        texts = load_prompts(settings.dataset, load_tokenizer(model), settings.prompts, settings.prompt_tokens)
        prompts = [PromptWithImages(ids) for ids in texts]
    shapes = _shapes(target, loaded, prompts[0].ids, stop, settings)
    pairs = compare(target, loaded, prompts, list(shapes.values()), stop, settings, progress)
    trained = None if isinstance(loaded, NgramSettings) else loaded
    return {
        "prompts": len(prompts),
        "max_new_tokens": settings.max_new_tokens,
        "greedy": settings.sampling.greedy,
        "draft_parameters": 0 if trained is None else trained.count(),
        "draft_op_by_op": None if trained is None else unfit(trained),
        "shapes": {name: _numbers(target, prompts, pairs[n], settings) for n, name in enumerate(shapes)},
    }


def _shapes(
    target: Target,
    draft: Draft | NgramSettings,
    prompt: Sequence[int],
    stop: StopCriteria,
    settings: DraftEvalSettings,
) -> dict[str, ShapeOfText]:
    """What is compared, by name: the shapes asked for; for look-up drafting without any, its policy, which measures
    behind the first prompt for all of them."""
    fixed = {shape.name: shape for shape in (TreeShape(*shape) for shape in settings.shapes)}
    if fixed or not isinstance(draft, NgramSettings):
        return {name: partial(TreeShape, *astuple(shape)) for name, shape in fixed.items()}
    first = policy_for(draft, stop, settings.sampling)
    start_behind(first, target, draft, prompt)
    return {"ngram": lambda: policy_for(draft, stop, settings.sampling, first.options)}


def compare(
    target: Target,
    draft: Draft | NgramSettings,
    prompts: Sequence[PromptWithImages],
    shapes: Sequence[ShapeOfText],
    stop: StopCriteria,
    settings: DraftEvalSettings,
    progress: Progress = silent,
) -> list[list[OutputPair]]:
    """The outputs per shape and prompt. Plain decoding runs before and after the others in turns, so that a machine
    that slows down favours neither. shapes: called for every text."""
    sampling, seed = settings.sampling, settings.seed
    warm_up = StopCriteria(min(WARM_UP_TOKENS, stop.max_new_tokens))
    for shape in shapes:
        speculative(target, draft, prompts[0].ids, warm_up, sampling, shape(), seed, prompts[0].images)
    pairs: list[list[OutputPair]] = [[] for _ in shapes]
    for number, prompt in enumerate(prompts):
        progress("decode prompts", number, len(prompts))
        ids, images = prompt.ids, prompt.images
        before = plain(target, ids, stop, sampling, seed, images) if number % 2 == 0 else None
        fast = [speculative(target, draft, ids, stop, sampling, shape(), seed, images) for shape in shapes]
        reference = before or plain(target, ids, stop, sampling, seed, images)
        for shape_pairs, out in zip(pairs, fast):
            shape_pairs.append((reference, out))
    progress("decode prompts", len(prompts), len(prompts))
    return pairs


def _numbers(
    target: Target, prompts: Sequence[PromptWithImages], pairs: Sequence[OutputPair], settings: DraftEvalSettings
) -> dict[str, Any]:
    """The numbers of one shape."""
    numbers = {**summary([out for _, out in pairs]), **speeds(pairs)}
    if settings.sampling.greedy and not settings.sampling.needs_prefix:
        mismatches = []
        for number, (reference, out) in enumerate(pairs):
            index = first_difference(reference.tokens, out.tokens)
            if index is not None:
                prompt = prompts[number]
                reason = classify(target, prompt.ids, reference.tokens, index, CLASSIFY_ROWS, prompt.images)
                mismatches.append({"prompt": number, **reason})
        numbers["identical"] = f"{len(pairs) - len(mismatches)}/{len(pairs)}"
        numbers["mismatches"] = mismatches
    return numbers
