"""`dfq outliers`: measure one checkpoint, advise, and publish report.json, report.html and its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.files import read_json, write_json
from dfrot.outliers.advice import DEFAULT_RECIPE, OutlierRecipe, recommend_recipe
from dfrot.outliers.measure.criteria import Criteria
from dfrot.outliers.measure.run import Measurement, MeasureSettings
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.measure.summary import mean_errors_by_part, channel_outliers, rank_by_error
from dfrot.outliers.report.html import write_report
from dfrot.stage_folder import Progress, open_stage, silent
from dfrot.stages.outliers.recipe import RecipeSettings, recipe_perplexity
from dfrot.stages.rotate.run import text_window
from dfrot_kernels.native import release_memory

KIND = "outliers"
REPORT, PAGE = "report.json", "report.html"
FORMAT = 1
SMALL = 1_000_000_000  # parameters up to which recipes are measured unasked


@dataclass(frozen=True)
class OutlierSettings:
    """dataset: measured on `windows` stretches of `seqlen` tokens of its train split, each beginning as the tokenizer
    begins a text (with BOS, for most). rounds: of the refinement. ablate: confirm attributions by a second stream.
    perplexity: measure the recommended recipe and the default's (None: when the model is small); recipe: how."""

    dataset: str = "wikitext2"
    seqlen: int = 2048
    windows: int = 1
    seed: int = 0
    criteria: Criteria = field(default_factory=Criteria)
    rounds: int = 100
    ablate: bool = True
    perplexity: bool | None = None
    recipe: RecipeSettings = field(default_factory=RecipeSettings)

    def __post_init__(self) -> None:
        if self.seqlen < 8 or self.windows < 1 or self.rounds < 0:
            raise InputError(f"outliers: seqlen {self.seqlen} (at least 8), windows {self.windows} (at least 1)")


def outliers(
    model: Path,
    out: Path | None,
    settings: OutlierSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure checkpoint folder `model`; returns the report, which is also published in folder `out` unless None.

    Raises a DfqError before any work for what cannot be read, and ExistsError when `out` is there."""
    subject, tokens, source, decode = prepare(model, settings)
    if out is None:
        return _measured(subject, tokens, source, decode, settings, None, progress)[0]
    request = {"model": subject.source.digest(), "data": source, "settings": asdict(settings)}
    with open_stage(out, KIND, request, resume=resume, overwrite=overwrite) as stage:
        if not stage.finished:
            report, maps = _measured(subject, tokens, source, decode, settings, stage.folder, progress)
            write_json(stage.folder / REPORT, report)
            write_report(stage.folder, report, maps)
            stage.publish({"report": REPORT, "page": PAGE})
            return report
    return dict(read_json(out / REPORT))


def prepare(model: Path, settings: OutlierSettings) -> tuple[Subject, Tensor, dict[str, Any], Any]:
    """The opened checkpoint, tokens int64 [windows, seqlen], what they are, and the tokenizer's decoder."""
    subject = Subject(Path(model))
    tokenizer = load_tokenizer(subject.source.path)
    text = load_text(settings.dataset, "train")
    rows = [text_window(text, tokenizer, settings.seqlen, settings.seed + n) for n in range(settings.windows)]
    tokens = torch.cat(rows)
    vocab = subject.arch.sizes["vocab"]
    if int(tokens.max()) >= vocab:
        raise InputError(
            f"{subject.source.path}: the tokenizer makes id {int(tokens.max())}, the vocabulary has {vocab} entries; "
            "copy the tokenizer of this model"
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    name = settings.dataset if not Path(settings.dataset).exists() else Path(settings.dataset).name
    source = {
        "dataset": name,
        "split": "train",
        "digest": text.digest,
        "windows": settings.windows,
        "seqlen": settings.seqlen,
        "bos": "at the start of every window" if bos is not None and bool((tokens[:, 0] == bos).all()) else "none",
    }
    return subject, tokens, source, lambda token: str(tokenizer.decode([token]))


def measure(
    subject: Subject, tokens: Tensor, source: dict[str, Any], decode: Any, settings: OutlierSettings, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report without measured perplexities, and the data of its pictures."""
    wanted = MeasureSettings(settings.criteria, settings.seed, settings.rounds, settings.ablate)
    work = Measurement(subject, tokens, wanted, decode)
    findings = work.run(progress)
    arch = subject.arch
    ranked = rank_by_error(findings["layers"])
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
        "data": source,
        "criteria": {**settings.criteria.to_dict(), "ratio_at_this_width": settings.criteria.ratio_at(arch.hidden)},
        **findings,
        "channel_outliers": channel_outliers(findings["layers"]),
        "head_outliers": channel_outliers(findings["layers"], "heads"),
        "ranking": ranked,
        "by_kind": mean_errors_by_part(ranked),
        "recommendation": recipe.to_dict(),
        "measured": None,
    }
    maps = {"states": work.state_maps, "inputs": work.input_maps, "turned": work.rotated_maps}
    return report, maps


def _measured(
    subject: Subject,
    tokens: Tensor,
    source: dict[str, Any],
    decode: Any,
    settings: OutlierSettings,
    folder: Path | None,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    report, maps = measure(subject, tokens, source, decode, settings, progress)
    size = sum(entry.end - entry.start for entry in subject.source.entries.values()) // 2
    wanted = settings.perplexity if settings.perplexity is not None else size <= SMALL
    if wanted and subject.kind == "original" and folder is not None:
        release_memory()
        values = {key: value for key, value in report["recommendation"].items() if key != "reasons"}
        recipe = OutlierRecipe(**{**values, "keep": tuple(values["keep"])})
        recipes = {"default": DEFAULT_RECIPE} | ({"recommended": recipe} if recipe != DEFAULT_RECIPE else {})
        how = replace(settings.recipe, dataset=settings.dataset, seed=settings.seed)
        report["measured"] = recipe_perplexity(subject.source.path, recipes, how, folder / "work", progress)
    return report, maps
