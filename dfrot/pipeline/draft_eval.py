"""`dfq draft eval`: plain and speculative decoding of the same prompts, interleaved, compared token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfrot.calib.data import load_text, windows
from dfrot.draft.base import Draft
from dfrot.draft.data import refuse_images
from dfrot.draft.decode import Limits, Output, plain, speculative
from dfrot.draft.metrics import classify, first_difference, speeds, summary
from dfrot.draft.store import check_target, load_draft
from dfrot.draft.target import Target
from dfrot.draft.tree import Shape
from dfrot.draft.warp import Sampling
from dfrot.errors import InputError
from dfrot.hf.load import load_model
from dfrot.hf.tokens import encode, load_tokenizer
from dfrot.stage import Progress, silent

LARGE = 32_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EvalSettings:
    """prompts: how many of the held-out text of `dataset` (a text or a .jsonl of `prompt` or `messages`), each of
    `prompt_tokens` tokens at most. shapes: (depth, top-k, total) of every comparison, all in one process. force:
    also drafts of another target. draft_dtype: what the draft computes
    in; auto takes float32 for a small draft, whose passes are overhead, and bfloat16 for a large one."""

    dataset: str = "stdlib"
    prompts: int = 20
    prompt_tokens: int = 64
    max_new_tokens: int = 128
    shapes: tuple[tuple[int, int, int], ...] = ((3, 1, 0), (5, 4, 16))
    sampling: Sampling = Sampling()
    force: bool = False
    seed: int = 0
    draft_dtype: str = "auto"


def name_of(shape: Shape) -> str:
    """`chain 3` or `tree 5,4,16`."""
    return f"chain {shape.depth}" if shape.topk == 1 else f"tree {shape.depth},{shape.topk},{shape.total}"


def load_in(draft: Path, dtype: str) -> Draft:
    """The draft in `dtype`, or in what suits its size."""
    loaded = load_draft(draft)
    if dtype == "auto":
        dtype = "bfloat16" if loaded.count() >= LARGE else "float32"
    return loaded.to(DTYPES[dtype])


def open_pair(model: Path, draft: Path, force: bool, dtype: str) -> tuple[Target, Draft, Any]:
    """Target, draft and tokenizer, checked against each other."""
    loaded = load_in(draft, dtype)
    target = Target(load_model(model), loaded.config.aux_layers)
    check_target(loaded.config, model, target.vocab_size, int(target.config.hidden_size), force)
    return target, loaded, load_tokenizer(model)


def load_prompts(dataset: str, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts as token ids: the starts of held-out windows, or the rows of a .jsonl with `prompt` or `messages`."""
    path = Path(dataset)
    if path.suffix == ".jsonl" and path.is_file():
        return _rows(path, tokenizer)[:count]
    text = windows(encode(tokenizer, load_text(dataset, "test").text), length)
    if len(text) < count:
        raise InputError(f"{dataset}: {count} prompts of {length} tokens needed, {len(text)} found")
    return [row.tolist() for row in text[:: len(text) // count][:count]]


def _rows(path: Path, tokenizer: Any) -> list[list[int]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from None
        if isinstance(row, dict):
            refuse_images(row, f"{path}, line {number}")
        text = row.get("prompt") if isinstance(row, dict) else None
        if text is None and isinstance(row, dict) and isinstance(row.get("messages"), list):
            asked = [message for message in row["messages"] if message.get("role") != "assistant"]
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        if not isinstance(text, str) or not text:
            raise InputError(f'{path}, line {number}: neither "prompt" nor "messages"; mend or remove the line')
        found.append(list(tokenizer(text)["input_ids"]))
    if not found:
        raise InputError(f"{path}: holds no prompts")
    return found


def evaluate(model: Path, draft: Path, settings: EvalSettings, progress: Progress = silent) -> dict[str, Any]:
    """Decode every prompt plainly and with every shape. Returns {"shapes": {name: numbers}, "prompts", ...}.

    Greedy outputs are compared token by token (`identical`); a difference is classified (`mismatches`). With
    sampling they differ by nature, and only the numbers are given."""
    target, loaded, tokenizer = open_pair(model, draft, settings.force, settings.draft_dtype)
    prompts = load_prompts(settings.dataset, tokenizer, settings.prompts, settings.prompt_tokens)
    shapes = [Shape(*shape) for shape in settings.shapes]
    limits = Limits(settings.max_new_tokens)
    pairs = compare(target, loaded, prompts, shapes, limits, settings, progress)
    return {
        "prompts": len(prompts),
        "max_new_tokens": settings.max_new_tokens,
        "greedy": settings.sampling.greedy,
        "draft_parameters": loaded.count(),
        "shapes": {name_of(shape): _numbers(target, prompts, pairs[n], settings) for n, shape in enumerate(shapes)},
    }


def compare(
    target: Target,
    draft: Draft,
    prompts: Sequence[Sequence[int]],
    shapes: Sequence[Shape],
    limits: Limits,
    settings: EvalSettings,
    progress: Progress = silent,
) -> list[list[tuple[Output, Output]]]:
    """Per shape and prompt the (plain, speculative) outputs. Plain runs before and after the others in turns, so that
    a machine that slows down favours neither."""
    sampling, seed = settings.sampling, settings.seed
    warm = Limits(min(8, limits.max_new_tokens))
    for shape in shapes:
        speculative(target, draft, prompts[0], warm, sampling, shape, seed)
    pairs: list[list[tuple[Output, Output]]] = [[] for _ in shapes]
    for number, prompt in enumerate(prompts):
        progress("decode prompts", number, len(prompts))
        before = plain(target, prompt, limits, sampling, seed) if number % 2 == 0 else None
        fast = [speculative(target, draft, prompt, limits, sampling, shape, seed) for shape in shapes]
        told = before or plain(target, prompt, limits, sampling, seed)
        for found, out in zip(pairs, fast):
            found.append((told, out))
    progress("decode prompts", len(prompts), len(prompts))
    return pairs


def _numbers(
    target: Target, prompts: Sequence[Sequence[int]], pairs: Sequence[tuple[Output, Output]], settings: EvalSettings
) -> dict[str, Any]:
    numbers = {**summary([out for _, out in pairs]), **speeds(pairs)}
    if settings.sampling.greedy and not settings.sampling.needs_prefix:
        mismatches = []
        for number, (told, out) in enumerate(pairs):
            place = first_difference(told.tokens, out.tokens)
            if place is not None:
                found = classify(target, prompts[number], told.tokens, place, 8)
                mismatches.append({"prompt": number, **found})
        numbers["identical"] = f"{len(pairs) - len(mismatches)}/{len(pairs)}"
        numbers["mismatches"] = mismatches
    return numbers
