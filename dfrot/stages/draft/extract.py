"""`dfq draft extract`: training features of a target on disk, for several drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.draft.training.multimodal_source import MultimodalSource
from dfrot.draft.training.sources import SIDES, LiveFeatures
from dfrot.draft.training.stored_features import SCORES, save_corpus, save_index, save_shard
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.files import require_free_space
from dfrot.generation.load_target import load_target
from dfrot.progress import Progress, silent
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.stages.draft.samples import data_request, describe_target, draft_config, live_source
from dfrot.stages.draft.settings import DraftSettings
from dfrot.vision.conversations import has_images

KIND = "draft extract"
PER_SHARD = 64  # samples of a shard
SHARD_BYTES = 16 << 20  # of a shard, unless one sample is larger
BATCH_TOKENS = 2048  # that the target computes at a time, unless one sample is longer
BATCH_SAMPLES = 8  # that the target computes at a time
VALUE_BYTES = 2  # features are stored in the target's dtype, bfloat16 or float16


def extract(
    model: Path,
    out: Path,
    settings: DraftSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish training features of the target folder `model` as shards; returns its `stage.json`. A killed run
    continues at the first missing shard."""
    refuse_inputs(out, model)
    arch, fingerprint = describe_target(model)
    config = draft_config(arch, settings, fingerprint)
    data = settings.data
    per_shard = max(1, min(PER_SHARD, SHARD_BYTES // sample_bytes(arch, settings)))
    request: dict[str, Any] = {"fingerprint": fingerprint, "select": config.select, "aux": list(config.aux_layers)}
    request |= {"data": data_request(data), "per_shard": per_shard}
    require_free_space(out.parent, extract_bytes(arch, settings))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            source = live_source(model, load_target(model, config.aux_layers), data, config.select, progress)
            names: set[str] = set()
            for side in SIDES:
                corpus = source.corpus(side)
                save_corpus(stage.folder, side, corpus)
                for shard, index in enumerate(torch.split(torch.arange(len(corpus)), per_shard)):
                    unit = f"{side}-{shard}"
                    progress(f"extract {side}", shard * per_shard, len(corpus))
                    if not stage.done(unit):
                        stage.mark(unit, _extract_shard(source, side, index, shard, stage.folder))
                    names |= set(stage.recall(unit))
            content = {"aux_layers": list(config.aux_layers), "tensors": sorted(names)}
            save_index(stage.folder, {**request, **content})
            stage.publish({"samples": len(source.corpus("train")), "bytes": extract_bytes(arch, settings)})
    return read_record(out, KIND)


def _extract_shard(
    source: LiveFeatures | MultimodalSource, side: str, index: torch.Tensor, shard: int, folder: Path
) -> list[str]:
    """Write one shard. Returns the names of its tensors."""
    longest = source.corpus(side).tokens.shape[1]
    parts = []
    for part in torch.split(index, max(1, min(BATCH_SAMPLES, BATCH_TOKENS // longest))):
        scores = None
        if isinstance(source, MultimodalSource):
            rows, features, scores = source.scored(side, part)
        else:
            rows, features = source.batch(side, part)
        missing = longest - rows.tokens.shape[1]
        tensors = {name: _pad(value, missing) for name, value in vars(features).items() if value is not None}
        parts.append(tensors if scores is None else {**tensors, SCORES: _pad(scores, missing, -1.0)})
    # a single part is not copied; several are joined one tensor at a time
    joined = parts[0] if len(parts) == 1 else {n: torch.cat([part.pop(n) for part in parts]) for n in list(parts[0])}
    names, shard_scores = sorted(joined), joined.pop(SCORES, None)
    save_shard(folder, side, shard, TargetFeatures(**joined), shard_scores)
    return names


def _pad(x: torch.Tensor, missing: int, value: float = 0.0) -> torch.Tensor:
    """x [B, S, ..] with `missing` positions appended; tensors with one value per sequence [B, 1] stay."""
    if not missing or x.shape[1] == 1:
        return x
    return torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), value)], 1)


def sample_bytes(arch: BoundArch, settings: DraftSettings) -> int:
    """Bytes on disk of a sample, at most: the last feature, the intermediate one, three more where layers are read,
    and with images the merged embeddings."""
    streams = 1 + (settings.select != "none" and settings.arch == "dream") + 3 * settings.reads_layers
    streams += has_images(settings.data.dataset)
    return VALUE_BYTES * arch.hidden * streams * settings.data.seqlen


def extract_bytes(arch: BoundArch, settings: DraftSettings) -> int:
    """Bytes on disk of all shards, at most."""
    return sample_bytes(arch, settings) * (settings.data.samples + settings.data.held_out)


def extract_size(model: Path, settings: DraftSettings) -> int:
    """Bytes that `extract` will write, at most."""
    return extract_bytes(describe_target(model)[0], settings)
