"""`dfq draft train`: a draft for one target, from features of exactly that target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dflash import DFlashDraft
from dfrot.draft.proposal_head import trimmed_training_head
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.schemes import head_scheme, scheme_of
from dfrot.draft.store import save_draft
from dfrot.draft.training.distributed import LocalGroup
from dfrot.draft.training.draft_vocabulary import DraftVocabulary, check_size, choose_vocabulary
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.draft.training.sources import FeatureSource
from dfrot.draft.training.stored_features import StoredFeatures
from dfrot.draft.training.train_state import STATE
from dfrot.draft.training.trainer import Trainer, by_rank
from dfrot.errors import InputError, UnsupportedError
from dfrot.files import require_free_space
from dfrot.generation.load_target import load_target
from dfrot.generation.target import Target
from dfrot.lineage import source_record
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import plan_linears
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.stages.draft.samples import data_request, describe_target, draft_config, live_source
from dfrot.stages.draft.settings import DraftSettings

KIND = "draft train"
WORK = b"work"  # what the first process sends the others when there is work to do
# Bytes on disk per parameter while training: the state holds weights, best weights and two moments in float32, the new
# state is written beside the old one, and the draft itself is stored in bfloat16 (an upper estimate).
DISK_BYTES_PER_PARAMETER = 20
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
    """Publish a draft for the target folder `model`; returns its `stage.json`, with the history of evaluations.

    Args:
        model: the target's folder.
        out: the folder to publish.
        settings: of draft, data and training.
        features: a result of `extract`; None computes features while training.
        progress: called while working.
        report: called with the record of every evaluation.
        group: processes that train together, each calling this with the same arguments
            (dfrot/draft/training/distributed.py). The first one owns `out`; the others return {}.
        resume, overwrite: see `open_stage`.

    Raises DfqError for targets that cannot be drafted for, for data without answers, and for features of another
    target; UnsupportedError for a target whose head is stored as integers, which no gradient passes."""
    refuse_inputs(out, model, features)
    arch, fingerprint = describe_target(model)
    _refuse_integer_head(model, arch)
    config = draft_config(arch, settings, fingerprint)
    check_size(settings.draft_vocab, config.vocab_size)
    if settings.quantize:
        scheme_of(settings.quantize)
    if config.aux_layers and max(config.aux_layers) > arch.n_layers:
        raise InputError(f"{model}: too few layers ({arch.n_layers}) for this draft, which reads three", file=model)
    request = {
        "draft": config.to_dict(),
        "train": _train_request(settings),
        "warm": settings.warm,
        "quantize": settings.quantize,
        "data": data_request(settings.data) if features is None else {"features": StoredFeatures(features).index},
    }
    if settings.draft_vocab is not None:
        request["draft_vocab"] = settings.draft_vocab
    if settings.quantize:
        request["quantize_head"] = settings.quantize_head
    run = _Run(model, config, settings, features, progress, report, group or LocalGroup())
    if run.group.rank:
        if run.group.broadcast(b"") == WORK:
            with tempfile.TemporaryDirectory(prefix="dfq-draft-") as folder:
                run.train(Path(folder))
        return {}
    require_free_space(out.parent, DISK_BYTES_PER_PARAMETER * parameter_count(config))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        run.group.broadcast(b"" if stage.finished else WORK)
        if not stage.finished:
            stage.mark("begun")
            stage.publish({**run.train(stage.folder), **source_record(model)})
    return read_record(out, KIND)


def _train_request(settings: DraftSettings) -> dict[str, Any]:
    """The training settings of a request, without those that do not apply."""
    request = asdict(settings.train)
    if settings.train.hours is None:
        del request["hours"]
    if settings.arch != "dflash":
        del request["roots"]
    return request


def _refuse_integer_head(model: Path, arch: BoundArch) -> None:
    """Raise UnsupportedError where the target's head is stored as integers."""
    config = DfqConfig.of(arch.config)
    head = None if config is None else plan_linears(arch, config).get(arch.spec.head.name)
    if head is not None and head.packed:
        raise UnsupportedError(
            f"{model}: its head has {head.w_bits} bits, and no gradient passes through integers; train the draft on a "
            "target with a 16-bit head",
            field="model",
            file=model,
        )


def parameter_count(config: DraftConfig) -> int:
    """Parameters of a draft, without allocating one."""
    with torch.device("meta"):
        return build(config).count()


@dataclass(frozen=True)
class _Run:
    """What one process does; the fields are arguments of `train`."""

    model: Path
    config: DraftConfig
    settings: DraftSettings
    features: Path | None
    progress: Progress
    report: Report
    group: LocalGroup

    def train(self, folder: Path) -> dict[str, Any]:
        """Train and save the draft in `folder`. Returns the record: the history, and what quantization cost."""
        target = load_target(self.model, self.config.aux_layers)
        source = self._source(target)
        torch.manual_seed(self.settings.train.seed)
        vocabulary = choose_vocabulary(source.corpus("train"), self.settings.draft_vocab, self.config.vocab_size)
        draft = self._untrained(vocabulary)
        if isinstance(draft, DFlashDraft):
            draft.set_mask(target.embed(torch.tensor(self.config.mask_token_id)))
        if self.settings.warm:
            init_from_target(draft, target)
        own_head = None if vocabulary is None else trimmed_training_head(target, vocabulary.ids)
        tools = (target.embed, target.head, self.settings.train, folder, self.report, own_head, self.group)
        trainer = Trainer(draft, source, *tools)
        record: dict[str, Any] = {"history": trainer.run(self.progress)}
        if trainer.schedule is not None:
            record["schedule"] = trainer.schedule.to_dict()
        if vocabulary is not None:
            record["vocabulary"] = {"size": len(vocabulary.ids), "coverage": vocabulary.coverage}
        if not self.group.rank:
            record |= self._save(trainer, folder)
        return {**record, "train_tokens": int(source.corpus("train").lengths.sum())}

    def _untrained(self, vocabulary: DraftVocabulary | None) -> Draft:
        if vocabulary is None:
            return build(self.config)
        draft = build(replace(self.config, draft_vocab_size=len(vocabulary.ids)))
        draft.choose_tokens(vocabulary.ids)
        return draft

    def _source(self, target: Target) -> FeatureSource:
        data = self.settings.data
        if self.features is None:
            return live_source(self.model, target, data, self.config.select, self.progress)
        stored = StoredFeatures(self.features, data.keep)
        stored.check(self.config.target_fingerprint, self.config.select, self.config.aux_layers)
        return stored

    def _save(self, trainer: Trainer, folder: Path) -> dict[str, Any]:
        """Quantize the trained draft if asked to, and save it. Returns what quantization cost, if anything."""
        draft, record = trainer.draft, {}
        if self.settings.quantize:
            record["quantized"] = self._quantize(trainer, draft)
        save_draft(folder, draft)
        (folder / STATE).unlink(missing_ok=True)
        return record

    def _quantize(self, trainer: Trainer, draft: Draft) -> dict[str, Any]:
        before = trainer.measure().simulated_tau
        scheme = self.settings.quantize
        head = head_scheme(scheme, self.settings.quantize_head, draft.config.draft_vocab_size)
        cost = {**quantize_draft(draft, scheme, head), "simulated_tau_before": before}
        draft.config = replace(draft.config, quantized=scheme, quantized_head=head)
        held_out = trainer.measure()
        return {**cost, "simulated_tau": held_out.simulated_tau, **by_rank(held_out)}
