"""What training and extraction of features share: the target's identity, the draft's config, and the samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.arch import BoundArch, describe
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.models.build import config_for
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.training.corpus import Corpus, load_corpora
from dfrot.draft.training.multimodal_data import MultimodalSample, load_multimodal, training_sample
from dfrot.draft.training.multimodal_source import MultimodalSource
from dfrot.draft.training.regenerate import answered, regenerate
from dfrot.draft.training.sources import LiveFeatures
from dfrot.generation.target import Target
from dfrot.progress import Progress
from dfrot.runtime.load import check_folder
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot.vision.conversations import Row, has_images
from dfrot.vision.fingerprint import checkpoint_fingerprint
from dfrot.vision.prompts import first_question, prompt_reader


def describe_target(model: Path) -> tuple[BoundArch, str]:
    """Architecture and fingerprint of a checkpoint folder. Raises DfqError for one that cannot be drafted for."""
    checkpoint, _ = check_folder(model)
    return describe(checkpoint.config, str(model / "config.json")), checkpoint_fingerprint(model)


def draft_config(arch: BoundArch, settings: DraftSettings, fingerprint: str) -> DraftConfig:
    """The config of the draft that `settings` ask for. fingerprint: of the target."""
    of_blocks = {name: getattr(settings, name) for name in ("block_size", "num_layers")}
    return config_for(
        arch,
        settings.arch,
        **{name: value for name, value in of_blocks.items() if value is not None},
        select=settings.select if settings.arch == "dream" else "none",
        intermediate_size=settings.intermediate or arch.intermediate,
        target_fingerprint=fingerprint,
        cross=settings.cross,
        distance=settings.distance,
        newest=settings.newest,
        trained_head=settings.trained_head,
        reads_layers=settings.reads_layers,
    )


def corpora(model: Path, target: Target, data: DataSettings, progress: Progress) -> tuple[Corpus, Corpus]:
    """Training and held-out text, its answers written by the target with `regenerate`."""
    pair = load_corpora(data.dataset, load_tokenizer(model), data.samples, data.held_out, data.seqlen, data.seed)
    if not data.regenerate:
        return pair
    train, held_out = (regenerate(target, corpus, data.prompt, progress) for corpus in pair)
    return train, held_out


def live_source(
    model: Path, target: Target, data: DataSettings, select: str, progress: Progress
) -> LiveFeatures | MultimodalSource:
    """Samples of text or about images, their features from the running target. select: of the intermediate feature."""
    if not has_images(data.dataset):
        return LiveFeatures(target, *corpora(model, target, data, progress), select)
    reader = prompt_reader(model)
    rows_read = 0

    def make(row: Row) -> MultimodalSample | None:
        nonlocal rows_read
        label = "the target writes answers" if data.regenerate else "read images"
        progress(label, rows_read, data.samples + data.held_out)
        rows_read += 1
        if not data.regenerate:
            return training_sample(reader, row, data.seqlen)
        return answered(target, *first_question(reader, row), data.seqlen)

    pair = load_multimodal(data.dataset, data.samples, data.held_out, make)
    return MultimodalSource(target, *pair, select, data.keep)


def data_request(data: DataSettings) -> dict[str, Any]:
    """The settings as part of a request, with the dataset's name in place of its path, which would tie the result to
    this machine."""
    name = Path(data.dataset).name if Path(data.dataset).exists() else data.dataset
    return {**asdict(data), "dataset": name}
