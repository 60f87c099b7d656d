"""`dfq draft train` and `extract`: a draft for one target, from features of exactly that target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch, describe
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.models.build import build, config_for
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.quantize import quantize_draft, scheme_of
from dfrot.draft.store import save_draft
from dfrot.draft.training.corpus import Corpus, load_corpora
from dfrot.draft.training.distributed import LocalGroup
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.draft.training.multimodal_data import load_multimodal, training_sample
from dfrot.draft.training.multimodal_source import MultimodalSample, MultimodalSource
from dfrot.draft.training.regenerate import answered, regenerate
from dfrot.draft.training.sources import (
    SCORES,
    FeatureSource,
    LiveFeatures,
    StoredFeatures,
    save_corpus,
    save_index,
    save_shard,
)
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.draft.training.trainer import STATE, Trainer, TrainOptions, by_rank
from dfrot.errors import InputError
from dfrot.files import require_free_space
from dfrot.generation.load_target import load_target
from dfrot.generation.target import Target
from dfrot.runtime.load import check_folder
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.vision.conversations import Row, has_images
from dfrot.vision.fingerprint import fingerprint
from dfrot.vision.image_inputs import KEEP
from dfrot.vision.prompts import first_question, prompt_reader

KIND, EXTRACT = "draft train", "draft extract"
PER_SHARD, SHARD_BYTES = 64, 16 << 20  # samples of a shard, and what it holds at most unless one sample is larger
TOGETHER = 2048  # tokens that the target sees at a time, unless one sample is longer
WORK = b"work"  # the first process to the others
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class DataSettings:
    """dataset: stdlib, wikitext2, a text, a .jsonl of messages (with images), or shapes. samples and held_out:
    sequences of at most seqlen tokens. regenerate: the target writes all but the first `prompt` tokens itself
    (greedily), with images all behind the question. keep: share of image tokens that are slots of the draft on held-out
    samples."""

    dataset: str = "stdlib"
    samples: int = 1024
    held_out: int = 16
    seqlen: int = 256
    regenerate: bool = False
    prompt: int = 32
    seed: int = 0
    keep: float = KEEP

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise InputError(f"--keep-visual {self.keep}: is not a share between 0 and 1")
        for name, least in (("samples", 1), ("held_out", 1), ("seqlen", 8), ("prompt", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least {least} is needed")
        if self.prompt >= self.seqlen:
            raise InputError(f"--prompt {self.prompt}: must be shorter than --seqlen {self.seqlen}")


@dataclass(frozen=True)
class DraftSettings:
    """arch: dream or eagle3. select: sample, token, static:F or none. cross: False leaves the cross-attention out,
    distance: False its lean towards near features. intermediate: width of the draft's MLPs, None for the target's.
    warm: begin with the target's own first and last block (dfrot/draft/training/init_from_target.py).
    quantize: w4 or w8 rounds the trained draft."""

    arch: str = "dream"
    select: str = "sample"
    cross: bool = True
    distance: bool = True
    intermediate: int | None = None
    warm: bool = True
    quantize: str = ""
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainOptions = field(default_factory=TrainOptions)


def _open(model: Path) -> tuple[BoundArch, str]:
    checkpoint, _ = check_folder(model)
    return describe(checkpoint.config, str(model / "config.json")), fingerprint(model)


def draft_config(arch: BoundArch, settings: DraftSettings, mark: str) -> DraftConfig:
    """The config of the draft that `settings` ask for."""
    width = settings.intermediate or arch.intermediate
    select = settings.select if settings.arch == "dream" else "none"
    parts = {"cross": settings.cross, "distance": settings.distance}
    return config_for(arch, settings.arch, select=select, intermediate_size=width, target_fingerprint=mark, **parts)


def corpora(model: Path, target: Target, data: DataSettings, progress: Progress) -> tuple[Corpus, Corpus]:
    """Training and held-out samples, the answers written by the target if so asked."""
    pair = load_corpora(data.dataset, load_tokenizer(model), data.samples, data.held_out, data.seqlen, data.seed)
    if not data.regenerate:
        return pair
    train, held = (regenerate(target, corpus, data.prompt, progress) for corpus in pair)
    return train, held


def _source(
    model: Path, target: Target, data: DataSettings, select: str, progress: Progress
) -> LiveFeatures | MultimodalSource:
    """Samples of text or about images, their features from the running target."""
    if not has_images(data.dataset):
        return LiveFeatures(target, *corpora(model, target, data, progress), select)
    reader = prompt_reader(model)
    made = 0

    def make(row: Row) -> MultimodalSample | None:
        nonlocal made
        progress("the target writes answers" if data.regenerate else "read images", made, data.samples + data.held_out)
        made += 1
        if not data.regenerate:
            return training_sample(reader, row, data.seqlen)
        return answered(target, *first_question(reader, row), data.seqlen)

    pair = load_multimodal(data.dataset, data.samples, data.held_out, make)
    return MultimodalSource(target, *pair, select, data.keep)


def _named(data: DataSettings) -> dict[str, Any]:
    """Settings for the record: a path would tie the result to this machine."""
    name = Path(data.dataset).name if Path(data.dataset).exists() else data.dataset
    return {**asdict(data), "dataset": name}


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


def extract(
    model: Path,
    out: Path,
    settings: DraftSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish training features of the target as shards; a killed run continues at the first missing shard."""
    arch, mark = _open(model)
    config = draft_config(arch, settings, mark)
    data = settings.data
    per_shard = max(1, min(PER_SHARD, SHARD_BYTES // sample_bytes(arch, settings)))
    request: dict[str, Any] = {"fingerprint": mark, "select": config.select, "aux": list(config.aux_layers)}
    request |= {"data": _named(data), "per_shard": per_shard}
    require_free_space(out.parent, extract_bytes(arch, settings))
    with open_stage(out, EXTRACT, request, resume, overwrite) as stage:
        if not stage.finished:
            source = _source(model, load_target(model, config.aux_layers), data, config.select, progress)
            names: set[str] = set()
            for side in ("train", "held_out"):
                corpus = source.corpus(side)
                save_corpus(stage.folder, side, corpus)
                for shard, index in enumerate(torch.split(torch.arange(len(corpus)), per_shard)):
                    unit = f"{side}-{shard}"
                    progress(f"extract {side}", shard * per_shard, len(corpus))
                    if not stage.done(unit):
                        stage.mark(unit, _extract(source, side, index, shard, stage.folder))
                    names |= set(stage.recall(unit))
            index_of = {
                **request,
                "aux_layers": list(config.aux_layers),
                "tensors": sorted(names),
            }
            save_index(stage.folder, index_of)
            stage.publish({"samples": len(source.corpus("train")), "bytes": extract_bytes(arch, settings)})
    return read_record(out, EXTRACT)


def _extract(
    source: LiveFeatures | MultimodalSource, side: str, index: torch.Tensor, shard: int, folder: Path
) -> list[str]:
    """Write one shard; returns the names of its tensors."""
    longest = source.corpus(side).tokens.shape[1]
    parts = []
    for part in torch.split(index, max(1, min(8, TOGETHER // longest))):
        seen = None
        if isinstance(source, MultimodalSource):
            rows, found, seen = source.scored(side, part)
        else:
            rows, found = source.batch(side, part)
        missing = longest - rows.tokens.shape[1]
        one = {name: _pad(value, missing) for name, value in vars(found).items() if value is not None}
        parts.append(one if seen is None else {**one, SCORES: _pad(seen, missing, -1.0)})
    # one part is not copied
    whole = parts[0] if len(parts) == 1 else {n: torch.cat([part.pop(n) for part in parts]) for n in list(parts[0])}
    names, scores = sorted(whole), whole.pop(SCORES, None)
    save_shard(folder, side, shard, TargetFeatures(**whole), scores)
    return names


def _pad(x: torch.Tensor, missing: int, value: float = 0.0) -> torch.Tensor:
    if not missing or x.shape[1] == 1:
        return x
    return torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), value)], 1)


def sample_bytes(arch: BoundArch, settings: DraftSettings) -> int:
    """Disk that a sample takes at most, at 2 bytes per value: last and intermediate features, three more for eagle3,
    with images the merged embeddings."""
    streams = 1 + (settings.select != "none" and settings.arch == "dream") + 3 * (settings.arch == "eagle3")
    streams += has_images(settings.data.dataset)
    return 2 * arch.hidden * streams * settings.data.seqlen


def extract_bytes(arch: BoundArch, settings: DraftSettings) -> int:
    """Disk that the shards take at most."""
    return sample_bytes(arch, settings) * (settings.data.samples + settings.data.held_out)


def extract_size(model: Path, settings: DraftSettings) -> int:
    """Bytes that `extract` will write, told beforehand."""
    return extract_bytes(_open(model)[0], settings)
