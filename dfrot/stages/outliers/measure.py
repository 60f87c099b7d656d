"""`dfq outliers`: measure one checkpoint, advise, and publish report.json, report.html and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.data.text_window import text_window
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.files import read_json, write_json
from dfrot.outliers.advice import DEFAULT_RECIPE, OutlierRecipe, recommend_recipe
from dfrot.outliers.measure.run import Measurement
from dfrot.outliers.measure.settings import MeasureSettings
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.measure.summary import channel_outliers, mean_errors_by_part, rank_by_error
from dfrot.outliers.report.html import write_report
from dfrot.progress import Progress, silent
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.stage_folder import refuse_inputs
from dfrot.stages.outliers.recipe import recipe_perplexity
from dfrot.stages.outliers.settings import OutlierSettings
from dfrot_kernels.memory import release_memory

KIND = "outliers"
REPORT, PAGE = "report.json", "report.html"
FORMAT = 1
SMALL = 1_000_000_000  # parameters up to which recipes are measured unasked
BYTES_PER_PARAMETER = 2  # of a 16-bit checkpoint


@dataclass(frozen=True)
class MeasurementPlan:
    """A checkpoint, the tokens it is measured on, and how."""

    subject: Subject
    """The opened checkpoint."""
    tokens: Tensor
    """int64 [windows, seqlen]."""
    source: dict[str, Any]
    """What the tokens are, JSON."""
    decode: Callable[[int], str]
    """Token id -> text."""
    settings: OutlierSettings
    """How it is measured."""


def outliers(
    model: Path,
    out: Path | None,
    settings: OutlierSettings,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure checkpoint folder `model`; returns the report, which is also published in folder `out` unless None.

    ranks: processes that share the work, each calling this with the same arguments; the report does not depend on them.
    Raises a DfqError before any work for what cannot be read, and ExistsError when `out` is there."""
    plan = prepare(model, settings)
    if out is None:
        return measure(plan, progress, ranks)[0]
    refuse_inputs(out, model)
    digest = plan.subject.source.digest()
    request = {"model": digest, "data": plan.source, "settings": asdict(settings)}
    with open_shared_stage(ranks, out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            report, maps = measure(plan, progress, ranks)
            if _measures_recipes(plan):
                work = stage.folder / "work"
                report["measured"] = _measure_recipes(plan, report["recommendation"], work, progress, ranks)
            if ranks.first:
                write_json(stage.folder / REPORT, report)
                write_report(stage.folder, report, maps)
            stage.publish({"report": REPORT, "page": PAGE})
            return report
    return dict(read_json(out / REPORT))


def prepare(model: Path, settings: OutlierSettings) -> MeasurementPlan:
    """Open the checkpoint and read the text. Raises InputError where its tokenizer does not match its vocabulary."""
    subject = Subject(Path(model))
    tokenizer = load_tokenizer(subject.source.path)
    text = load_text(settings.dataset, "train", tokenizer)
    rows = [text_window(text, tokenizer, settings.seqlen, settings.seed + n) for n in range(settings.windows)]
    tokens = torch.cat(rows)
    vocab = subject.arch.sizes["vocab"]
    if int(tokens.max()) >= vocab:
        raise InputError(
            f"{subject.source.path}: the tokenizer makes id {int(tokens.max())}, the vocabulary has {vocab} entries; "
            "copy the tokenizer of this model",
            file=subject.source.path,
            limit=vocab,
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    name = settings.dataset if not Path(settings.dataset).exists() else Path(settings.dataset).name
    source = {
        "dataset": name,
        "split": "train",
        "digest": text.digest,
        **text.rendered,
        "windows": settings.windows,
        "seqlen": settings.seqlen,
        "bos": "at the start of every window" if bos is not None and bool((tokens[:, 0] == bos).all()) else "none",
    }
    return MeasurementPlan(subject, tokens, source, lambda token: str(tokenizer.decode([token])), settings)


def measure(plan: MeasurementPlan, progress: Progress, ranks: Ranks = SINGLE) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report without measured perplexities, and the data of its pictures."""
    subject, settings = plan.subject, plan.settings
    how = MeasureSettings(settings.criteria, settings.seed, settings.rounds, settings.ablate)
    measurement = Measurement(subject, plan.tokens, how, plan.decode, ranks)
    findings = measurement.run(progress)
    arch, layers = subject.arch, findings["layers"]
    ranked = rank_by_error(layers)
    recipe = recommend_recipe(findings, ranked, arch.spec.head.name, arch.spec.block)
    report = {
        "format": FORMAT,
        "model": {
            "name": subject.source.path.name,
            "kind": subject.kind,
            "digest": subject.source.digest(),
            "model_type": arch.spec.model_type,
            "layers": arch.n_layers,
            "hidden": arch.hidden,
            "intermediate": arch.intermediate,
            "heads": arch.n_heads,
            "kv_heads": arch.n_kv_heads,
        },
        "data": plan.source,
        "criteria": {**settings.criteria.to_dict(), "ratio_at_this_width": settings.criteria.ratio_at(arch.hidden)},
        **findings,
        "channel_outliers": channel_outliers(layers),
        "head_outliers": channel_outliers(layers, "heads"),
        "ranking": ranked,
        "by_kind": mean_errors_by_part(ranked),
        "recommendation": recipe.to_dict(),
        "measured": None,
    }
    maps = {
        "states": measurement.state_maps,
        "inputs": measurement.input_maps,
        "rotated": measurement.rotated_maps,
    }
    return report, maps


def _measures_recipes(plan: MeasurementPlan) -> bool:
    """Whether the perplexities of recipes are measured: on request, or unasked for small models."""
    asked = plan.settings.perplexity
    parameters = sum(entry.end - entry.start for entry in plan.subject.source.entries.values()) // BYTES_PER_PARAMETER
    return plan.subject.kind == "original" and (asked if asked is not None else parameters <= SMALL)


def _measure_recipes(
    plan: MeasurementPlan, recommendation: dict[str, Any], work: Path, progress: Progress, ranks: Ranks
) -> dict[str, Any]:
    """Perplexities of the recommended recipe and of the default one."""
    release_memory()
    recipe = OutlierRecipe.from_dict(ranks.broadcast(recommendation))
    recipes = {"default": DEFAULT_RECIPE} | ({"recommended": recipe} if recipe != DEFAULT_RECIPE else {})
    how = replace(plan.settings.recipe, dataset=plan.settings.dataset, seed=plan.settings.seed)
    return recipe_perplexity(plan.subject.source.path, recipes, how, work, progress, ranks)
