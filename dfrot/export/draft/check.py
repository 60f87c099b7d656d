"""`dfq draft export --check`: engines decode with a draft; what they accept of it is compared with what dfq does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.models.base import Draft
from dfrot.draft.store import WEIGHTS, load_draft
from dfrot.errors import DfqError, InputError
from dfrot.export.draft.export import export_draft
from dfrot.export.draft.replay import replay
from dfrot.export.draft.settings import CHECK, DraftCheckSettings
from dfrot.export.run import export
from dfrot.export.serving.drafts import TARGETS_FORMAT, DraftRequest, DraftRun, run_draft
from dfrot.export.serving.driving import versions_of
from dfrot.export.serving.environments import DRAFT_ENGINES, EngineEnvironment, find_environments
from dfrot.files import file_sha256
from dfrot.generation.load_target import load_target
from dfrot.generation.output import StopCriteria
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.progress import Progress, silent
from dfrot.stages.draft.prompts import load_prompts

TOLERANCE = 0.02
"""Relative difference of acceptance lengths, on the engine's text, up to which an engine accepts what dfq does."""
SERVED, OTHER, REFUSED, MISSING = "as dfq", "something else", "refused", "not set up"


@dataclass(frozen=True)
class _Ours:
    """Target and draft in this process."""

    target: Target
    draft: Draft
    prompts: list[list[int]]


def check_draft(
    model: Path,
    draft: Path,
    names: Sequence[str],
    settings: DraftCheckSettings,
    *,
    threads: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Let engines decode the same prompts greedily with an exported draft beside its exported target.

    Args:
        model: the target: a checkpoint that the engines' formats hold.
        draft: a draft of `dfq draft train` for it.
        names: engines of `environments.DRAFT_ENGINES`; empty for all.
        settings: prompts, draft tokens per round, where the engines are.
        threads: that an engine may use.

    Returns {"kind", "model", "draft", "target_fingerprint", "weights", "arch", "dataset", "chain", "prompts",
    "new_tokens", "tau", "rows"}: model, draft and dataset by name, without the folders they lie in, for the report may
    be published beside the draft; weights the SHA-256 of the draft's; tau dfq's own on its own text. Keys of a row:
    engine, verdict, detail, kept, tau (the engine's), replayed (dfq's on the engine's text),
    ratio of these two, same_tokens (of the engine's text, those up to the first that dfq writes otherwise, and all),
    versions, peak_bytes, seconds. Raises DfqError for a draft that cannot be exported."""
    environments = find_environments(settings.engines, names, DRAFT_ENGINES)
    loaded = load_draft(draft)
    if loaded.max_depth is not None and settings.speculative_tokens > loaded.max_depth:
        limit = loaded.max_depth
        raise InputError(
            f"`speculative_tokens` {settings.speculative_tokens}: this draft proposes {limit} tokens at once",
            field="speculative_tokens",
            limit=limit,
        )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dfq-draft-check-") as name:
        work = Path(name)
        for form in {form for engine in environments for form in DRAFT_ENGINES[engine].formats}:
            export_draft(model, draft, work / f"draft-{form}", str(model), form)
        target = load_target(model, loaded.aux_layers)
        prompts = load_prompts(settings.dataset, load_tokenizer(model), settings.prompts, settings.prompt_tokens)
        ours = _Ours(target, loaded, prompts)
        request = DraftRequest(loaded.config.arch, settings.speculative_tokens, prompts, settings.new_tokens, threads)
        own = _decode(ours, request, progress)
        for engine, environment in environments.items():
            progress(engine, 0, 1)
            rows.append({"engine": engine, **_check(engine, environment, model, work, ours, own, request, settings)})
    return {
        "kind": CHECK,
        "model": model.absolute().name,
        "draft": draft.absolute().name,
        "target_fingerprint": loaded.config.target_fingerprint,
        "weights": file_sha256(draft / WEIGHTS),
        "dataset": Path(settings.dataset).name,
        "arch": request.arch,
        "chain": request.chain,
        "prompts": len(prompts),
        "new_tokens": request.new_tokens,
        "tau": own[1],
        "rows": rows,
    }


def _decode(ours: _Ours, request: DraftRequest, progress: Progress) -> tuple[list[list[int]], float]:
    """dfq's own text behind every prompt, and its acceptance length."""
    stop, shape = StopCriteria(request.new_tokens), TreeShape(request.chain)
    outputs = []
    for number, prompt in enumerate(ours.prompts):
        progress("dfq", number, len(ours.prompts))
        outputs.append(speculative(ours.target, ours.draft, prompt, stop, Sampling(), shape))
    accepted = [count for out in outputs for count in out.accepted]
    return [out.tokens for out in outputs], 1 + sum(accepted) / max(1, len(accepted))


def _check(
    engine: str,
    environment: EngineEnvironment | None,
    model: Path,
    work: Path,
    ours: _Ours,
    own: tuple[list[list[int]], float],
    request: DraftRequest,
    settings: DraftCheckSettings,
) -> dict[str, Any]:
    """The row of one engine."""
    nothing = {"kept": False, "tau": None, "replayed": None, "ratio": None, "same_tokens": None}
    if environment is None:
        return {"verdict": MISSING, "detail": "make engines", **nothing}
    form = TARGETS_FORMAT[engine]
    try:
        if not (work / form).exists():
            export(model, form, work / form)
    except DfqError as error:
        return {"verdict": REFUSED, "detail": f"no export of the target: {error}", **nothing}
    draft = work / f"draft-{DRAFT_ENGINES[engine].formats[0]}"
    ran = run_draft(environment, work / form, draft, request, settings.time_limit)
    if ran.run.refusal is not None:
        return {"verdict": REFUSED, "detail": ran.run.refusal, **nothing, **versions_of(ran.run)}
    return {**_judged(ran, ours, own[0], request), **versions_of(ran.run)}


def _judged(ran: DraftRun, ours: _Ours, own: list[list[int]], request: DraftRequest) -> dict[str, Any]:
    """Acceptance of an engine beside dfq's on the same text, and how far the texts agree."""
    accepted: list[int] = []
    for prompt, text in zip(ours.prompts, ran.tokens):
        accepted += replay(ours.target, ours.draft, prompt, text, request.chain)
    replayed = 1 + sum(accepted) / max(1, len(accepted))
    ratio = None if ran.tau is None else ran.tau / replayed
    kept = ratio is not None and abs(ratio - 1) <= TOLERANCE
    same = sum(_common(theirs, mine) for theirs, mine in zip(ran.tokens, own))
    return {
        "verdict": SERVED if kept else OTHER,
        "detail": "" if ran.tau is not None else "drafted nothing",
        "kept": kept,
        "tau": ran.tau,
        "replayed": replayed,
        "ratio": ratio,
        "same_tokens": [same, sum(len(text) for text in ran.tokens)],
    }


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens up to the first difference."""
    count = 0
    for a, b in zip(left, right):
        if a != b:
            break
        count += 1
    return count
