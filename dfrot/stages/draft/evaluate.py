"""`dfq draft eval`: plain and speculative decoding of the same prompts, interleaved, compared token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfrot.data.chat import template_ids
from dfrot.data.conversation_rows import refuse_images
from dfrot.data.jsonl import read_json_lines
from dfrot.data.text import evaluation_windows, load_text
from dfrot.data.tokenizer import encode
from dfrot.draft.load import open_pair
from dfrot.draft.metrics import classify, first_difference, speeds, summary
from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import unfit
from dfrot.errors import InputError
from dfrot.generation.load_target import end_token_ids
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape
from dfrot.stage_folder import Progress, silent
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot.vision.conversations import has_images
from dfrot.vision.prompts import PromptWithImages, load_questions, prompt_reader


def load_prompts(dataset: str, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts as token ids: the starts of held-out windows, or the rows of a .jsonl with `prompt` or `messages`."""
    path = Path(dataset)
    if path.suffix == ".jsonl" and path.is_file():
        return _rows(path, tokenizer)[:count]
    text = evaluation_windows(encode(tokenizer, load_text(dataset, "test").text), length)
    if len(text) < count:
        raise InputError(f"{dataset}: {count} prompts of {length} tokens needed, {len(text)} found")
    return [row.tolist() for row in text[:: len(text) // count][:count]]


def _rows(path: Path, tokenizer: Any) -> list[list[int]]:
    found = []
    for row, where in read_json_lines(path):
        refuse_images(row, where)
        if isinstance(row.get("prompt"), str) and row["prompt"]:
            found.append(list(tokenizer(row["prompt"])["input_ids"]))
        elif isinstance(row.get("messages"), list):
            asked = [one for one in row["messages"] if isinstance(one, dict) and one.get("role") != "assistant"]
            found.append(template_ids(tokenizer, asked, True))
        else:
            raise InputError(f'{where}: neither "prompt" nor "messages"; mend or remove the line')
    if not found:
        raise InputError(f"{path}: holds no prompts")
    return found


def evaluate(model: Path, draft: Path, settings: DraftEvalSettings, progress: Progress = silent) -> dict[str, Any]:
    """Decode every prompt plainly and with every shape. Returns {"shapes": {name: numbers}, "prompts", ...}.

    Greedy outputs are compared token by token (`identical`); a difference is classified (`mismatches`). With
    sampling they differ by nature, and only the numbers are given."""
    target, loaded, tokenizer = open_pair(model, draft, settings.force, settings.draft_dtype)
    limits = StopCriteria(settings.max_new_tokens)
    if has_images(settings.dataset):
        prompts = load_questions(settings.dataset, prompt_reader(model), settings.prompts, settings.keep)
        limits = StopCriteria(settings.max_new_tokens, end_token_ids(target))
    else:
        texts = load_prompts(settings.dataset, tokenizer, settings.prompts, settings.prompt_tokens)
        prompts = [PromptWithImages(ids) for ids in texts]
    shapes = [TreeShape(*shape) for shape in settings.shapes]
    pairs = compare(target, loaded, prompts, shapes, limits, settings, progress)
    return {
        "prompts": len(prompts),
        "max_new_tokens": settings.max_new_tokens,
        "greedy": settings.sampling.greedy,
        "draft_parameters": loaded.count(),
        "draft_op_by_op": unfit(loaded),
        "shapes": {shape.name: _numbers(target, prompts, pairs[n], settings) for n, shape in enumerate(shapes)},
    }


def compare(
    target: Target,
    draft: Draft,
    prompts: Sequence[PromptWithImages],
    shapes: Sequence[TreeShape],
    limits: StopCriteria,
    settings: DraftEvalSettings,
    progress: Progress = silent,
) -> list[list[tuple[GenerationOutput, GenerationOutput]]]:
    """Per shape and prompt the (plain, speculative) outputs. Plain runs before and after the others in turns, so that
    a machine that slows down favours neither."""
    sampling, seed = settings.sampling, settings.seed
    warm = StopCriteria(min(8, limits.max_new_tokens))
    for shape in shapes:
        speculative(target, draft, prompts[0].ids, warm, sampling, shape, seed, prompts[0].images)
    pairs: list[list[tuple[GenerationOutput, GenerationOutput]]] = [[] for _ in shapes]
    for number, asked in enumerate(prompts):
        progress("decode prompts", number, len(prompts))
        prompt, images = asked.ids, asked.images
        before = plain(target, prompt, limits, sampling, seed, images) if number % 2 == 0 else None
        fast = [speculative(target, draft, prompt, limits, sampling, shape, seed, images) for shape in shapes]
        told = before or plain(target, prompt, limits, sampling, seed, images)
        for found, out in zip(pairs, fast):
            found.append((told, out))
    progress("decode prompts", len(prompts), len(prompts))
    return pairs


def _numbers(
    target: Target,
    prompts: Sequence[PromptWithImages],
    pairs: Sequence[tuple[GenerationOutput, GenerationOutput]],
    settings: DraftEvalSettings,
) -> dict[str, Any]:
    numbers = {**summary([out for _, out in pairs]), **speeds(pairs)}
    if settings.sampling.greedy and not settings.sampling.needs_prefix:
        mismatches = []
        for number, (told, out) in enumerate(pairs):
            place = first_difference(told.tokens, out.tokens)
            if place is not None:
                found = classify(target, prompts[number].ids, told.tokens, place, 8, prompts[number].images)
                mismatches.append({"prompt": number, **found})
        numbers["identical"] = f"{len(pairs) - len(mismatches)}/{len(pairs)}"
        numbers["mismatches"] = mismatches
    return numbers
