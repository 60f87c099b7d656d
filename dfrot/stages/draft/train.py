"""`dfq draft train` and `extract`: a draft for one target, from features of exactly that target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.schemes import scheme_of
from dfrot.draft.store import save_draft
from dfrot.draft.training.distributed import LocalGroup
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.draft.training.sources import (
    FeatureSource,
    StoredFeatures,
)
from dfrot.draft.training.trainer import STATE, Trainer, by_rank
from dfrot.errors import InputError
from dfrot.files import require_free_space
from dfrot.generation.load_target import load_target
from dfrot.generation.target import Target
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.stages.draft.samples import _named, _open, _source, draft_config
from dfrot.stages.draft.settings import DraftSettings

KIND = "draft train"
WORK = b"work"  # the first process to the others
Report = Callable[[dict[str, Any]], None]


def train(
    model: Path,
    out: Path,
    settings: DraftSettings,
    *,
    features: Path | None = None,
    progress: Progress = silent,
    report: Report = lambda record: None,
    group: LocalGroup | None = None,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish a draft for the target folder `model`; returns its `stage.json` (with the history of evaluations).

    group: processes that train together, each calling this with the same arguments
    (dfrot/draft/training/distributed.py). The first one owns `out`; the others return {}.

    Raises DfqError in one line for targets that cannot be drafted for, for data without answers, and for features
    of another target."""
    arch, mark = _open(model)
    config = draft_config(arch, settings, mark)
    if settings.quantize:
        scheme_of(settings.quantize)
    if config.arch == "eagle3" and max(config.aux_layers) > arch.n_layers:
        raise InputError(f"{model}: too few layers ({arch.n_layers}) for an eagle3 draft")
    request = {
        "draft": config.to_dict(),
        "train": asdict(settings.train),
        "warm": settings.warm,
        "quantize": settings.quantize,
        "data": _named(settings.data) if features is None else {"features": StoredFeatures(features).index},
    }
    group = group or LocalGroup()

    def work(folder: Path) -> dict[str, Any]:
        target = load_target(model, config.aux_layers)
        source: FeatureSource
        if features is not None:
            stored = StoredFeatures(features, settings.data.keep)
            stored.check(mark, config.select, config.aux_layers)
            source = stored
        else:
            source = _source(model, target, settings.data, config.select, progress)
        told = _train(config, target, source, settings, folder, progress, report, group)
        return {**told, "train_tokens": int(source.corpus("train").lengths.sum())}

    if group.rank:
        if group.tell(b"") == WORK:
            with tempfile.TemporaryDirectory(prefix="dfq-draft-") as aside:
                work(Path(aside))
        return {}
    require_free_space(out.parent, 20 * build_size(config))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        group.tell(b"" if stage.finished else WORK)
        if not stage.finished:
            stage.mark("begun")
            stage.publish(work(stage.folder))
    return read_record(out, KIND)


def build_size(config: DraftConfig) -> int:
    """Parameters of a draft, without making one."""
    with torch.device("meta"):
        return build(config).count()


def _train(
    config: DraftConfig,
    target: Target,
    source: FeatureSource,
    settings: DraftSettings,
    folder: Path,
    progress: Progress,
    report: Report,
    group: LocalGroup,
) -> dict[str, Any]:
    """Train, save, and tell: the history, and what rounding the draft cost."""
    torch.manual_seed(settings.train.seed)
    draft = build(config)
    if settings.warm:
        init_from_target(draft, target)
    trainer = Trainer(draft, source, target.embed, target.head, settings.train, folder, report, group)
    told: dict[str, Any] = {"history": trainer.run(progress)}
    if group.rank:
        return told
    draft = trainer.draft
    if settings.quantize:
        before = trainer.measure().simulated_tau
        told["quantized"] = {**quantize_draft(draft, settings.quantize), "simulated_tau_before": before}
        held = trainer.measure()
        told["quantized"].update(simulated_tau=held.simulated_tau, **by_rank(held))
        draft.config = replace(config, quantized=settings.quantize)
    save_draft(folder, draft)
    (folder / STATE).unlink(missing_ok=True)
    return told
