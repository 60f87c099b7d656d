"""`dfq draft eval`: plain and speculative decoding of the same prompts, interleaved, compared token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.load import load_draft_in
from dfrot.draft.metrics import classify, first_difference, speeds, summary
from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import unfit
from dfrot.draft.store import check_target
from dfrot.errors import GateError, InputError
from dfrot.generation.load_target import end_token_ids, load_target
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
NGRAM, ADAPTIVE = "ngram", "adaptive"

OutputPair = tuple[GenerationOutput, GenerationOutput]
"""(plain, speculative)."""
ShapeOfText = Callable[[], TreeShape | Policy]
"""The shape, or a new policy, of one text."""


@dataclass(frozen=True)
class Proposal:
    """A draft that proposes tokens in one way."""

    name: str
    target: Target
    """The target, with the features that the draft reads."""
    drafter: Draft | NgramSettings
    shape: ShapeOfText


def evaluate(
    model: Path, drafts: Sequence[Path | NgramSettings], settings: DraftEvalSettings, progress: Progress = silent
) -> dict[str, Any]:
    """Decode every prompt plainly and with every draft and shape. Returns JSON: {"shapes": {name: numbers}, "drafts",
    "prompts", ...}; with several drafts a name is "draft, shape".

    drafts: folders, and settings of look-up drafting.

    Greedy outputs are compared token by token (`identical`), and differences classified (`mismatches`). Sampled outputs
    differ by nature; of them only the numbers are given. Raises InputError for drafts of one name."""
    loaded = _load(model, drafts, settings)
    target = loaded[0][1]
    stop = StopCriteria(settings.max_new_tokens)
    if has_images(settings.dataset):
        prompts = load_questions(settings.dataset, prompt_reader(model), settings.prompts, settings.keep)
        stop = StopCriteria(settings.max_new_tokens, end_token_ids(target))
    else:
        texts = load_prompts(settings.dataset, load_tokenizer(model), settings.prompts, settings.prompt_tokens)
        prompts = [PromptWithImages(ids) for ids in texts]
    proposals = [
        Proposal(name if len(loaded) == 1 else f"{label}, {name}" if name != label else name, own, drafter, shape)
        for label, own, drafter in loaded
        for name, shape in _shapes(own, drafter, prompts[0].ids, stop, settings, len(loaded) > 1).items()
    ]
    pairs = compare(target, proposals, prompts, stop, settings, progress)
    return {
        "prompts": len(prompts),
        "max_new_tokens": settings.max_new_tokens,
        "greedy": settings.sampling.greedy,
        "drafts": {label: _facts(drafter) for label, _, drafter in loaded},
        "shapes": {
            proposal.name: _numbers(proposal.target, prompts, of_proposal, settings)
            for proposal, of_proposal in zip(proposals, pairs)
        },
    }


def _load(
    model: Path, drafts: Sequence[Path | NgramSettings], settings: DraftEvalSettings
) -> list[tuple[str, Target, Draft | NgramSettings]]:
    """The drafts by name, each with a target that has the features it reads. The model is loaded once.

    Raises InputError for drafts of one name, MismatchError for a draft of another target."""
    labels = [NGRAM if isinstance(draft, NgramSettings) else draft.name for draft in drafts]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"`draft` {twice}: given twice; folders are told apart by their last name", field="draft")
    loaded = [
        draft if isinstance(draft, NgramSettings) else load_draft_in(draft, settings.draft_dtype) for draft in drafts
    ]
    layers = [() if isinstance(draft, NgramSettings) else draft.aux_layers for draft in loaded]
    first = load_target(model, layers[0])
    targets = [first, *(Target(first.model, aux) for aux in layers[1:])]
    for draft, target in zip(loaded, targets):
        if not isinstance(draft, NgramSettings):
            check_target(draft.config, model, target.vocab_size, int(target.config.hidden_size), settings.force)
    return list(zip(labels, targets, loaded))


def _facts(draft: Draft | NgramSettings) -> dict[str, Any]:
    """What a draft is, JSON."""
    if isinstance(draft, NgramSettings):
        return {"parameters": 0, "op_by_op": None}
    return {"parameters": draft.count(), "op_by_op": unfit(draft)}


def _shapes(
    target: Target,
    draft: Draft | NgramSettings,
    prompt: Sequence[int],
    stop: StopCriteria,
    settings: DraftEvalSettings,
    among_others: bool,
) -> dict[str, ShapeOfText]:
    """What is compared, by name: the shapes asked for, and a draft's policy where it is wanted, which measures behind
    the first prompt for all of them. Look-up drafting without shapes, and beside other drafts, has its policy alone."""
    lookup = isinstance(draft, NgramSettings)
    fixed = {shape.name: shape for shape in (TreeShape(*shape) for shape in settings.shapes)}
    if lookup and among_others:
        fixed = {}
    shapes: dict[str, ShapeOfText] = {name: partial(TreeShape, *astuple(shape)) for name, shape in fixed.items()}
    if settings.adaptive or not shapes:
        if not isinstance(draft, NgramSettings) and draft.rates is None:
            raise InputError("`adaptive`: this draft does not say what is accepted of it; train it", field="adaptive")
        first = policy_for(draft, stop, settings.sampling)
        start_behind(first, target, draft, prompt)
        name = NGRAM if lookup else ADAPTIVE
        shapes[name] = lambda: policy_for(draft, stop, settings.sampling, first.options)
    return shapes


def compare(
    target: Target,
    proposals: Sequence[Proposal],
    prompts: Sequence[PromptWithImages],
    stop: StopCriteria,
    settings: DraftEvalSettings,
    progress: Progress = silent,
) -> list[list[OutputPair]]:
    """The outputs per proposal and prompt. Plain decoding runs before and after the others in turns, so that a machine
    that slows down favours neither."""
    sampling, seed = settings.sampling, settings.seed
    warm_up = StopCriteria(min(WARM_UP_TOKENS, stop.max_new_tokens))

    def decode(proposal: Proposal, prompt: PromptWithImages, until: StopCriteria) -> GenerationOutput:
        own, drafter, shape = proposal.target, proposal.drafter, proposal.shape()
        return speculative(own, drafter, prompt.ids, until, sampling, shape, seed, prompt.images)

    for proposal in proposals:
        decode(proposal, prompts[0], warm_up)
    pairs: list[list[OutputPair]] = [[] for _ in proposals]
    for number, prompt in enumerate(prompts):
        progress("decode prompts", number, len(prompts))
        ids, images = prompt.ids, prompt.images
        before = plain(target, ids, stop, sampling, seed, images) if number % 2 == 0 else None
        fast = [decode(proposal, prompt, stop) for proposal in proposals]
        reference = before or plain(target, ids, stop, sampling, seed, images)
        for of_proposal, out in zip(pairs, fast):
            of_proposal.append((reference, out))
    progress("decode prompts", len(prompts), len(prompts))
    return pairs


def _numbers(
    target: Target, prompts: Sequence[PromptWithImages], pairs: Sequence[OutputPair], settings: DraftEvalSettings
) -> dict[str, Any]:
    """The numbers of one proposal."""
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


def require_identical(report: dict[str, Any]) -> None:
    """Raises GateError naming the first greedy output in a report of `evaluate` that differs from plain decoding."""
    for name, row in report["shapes"].items():
        if mismatches := row.get("mismatches"):
            first = mismatches[0]
            raise GateError(
                f"{name}: {len(mismatches)} of {report['prompts']} outputs differ; prompt {first['prompt']}, token "
                f"{first['place']}: {first['class']} (margin {first['margin']:.3g}, a block moves logits by "
                f"{first['block_difference']:.3g})"
            )
