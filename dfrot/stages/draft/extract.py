"""extract"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.draft.training.multimodal_source import MultimodalSource
from dfrot.draft.training.sources import (
    SCORES,
    LiveFeatures,
    save_corpus,
    save_index,
    save_shard,
)
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.files import require_free_space
from dfrot.generation.load_target import load_target
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.stages.draft.samples import _named, _open, _source, draft_config
from dfrot.stages.draft.settings import DraftSettings
from dfrot.vision.conversations import has_images

EXTRACT = "draft extract"


PER_SHARD, SHARD_BYTES = 64, 16 << 20  # samples of a shard, and what it holds at most unless one sample is larger


TOGETHER = 2048  # tokens that the target sees at a time, unless one sample is longer


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
