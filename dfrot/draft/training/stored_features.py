"""Training features on disk: an index, the token ids of both sides, and shards of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_header
from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.multimodal_source import kept_slots, share_of
from dfrot.draft.training.sources import SIDES
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.errors import InputError, MismatchError
from dfrot.files import read_json, write_json
from dfrot.tensor_file import load_tensors, save_tensors
from dfrot.vision.settings import KEEP

INDEX = "features.json"
SCORES = "scores"  # of image tokens, by which slots are kept
STORED = ("last", "mid", "layer", "aux", "embeddings")  # of TargetFeatures


class StoredFeatures:
    """A `FeatureSource` of shards `SIDE-NNNNN.safetensors`, each of `per_shard` samples (features.json)."""

    def __init__(self, folder: Path, keep: float = KEEP) -> None:
        """keep: share of image tokens that are slots of the draft in held-out samples, where there are images. Raises
        InputError for a folder that is incomplete."""
        self.folder, self.keep = folder, keep
        index_file = folder / INDEX
        if not index_file.is_file():
            raise InputError(f"{folder}: no {INDEX}; give the output folder of dfq draft extract", file=index_file)
        self.index: dict[str, Any] = read_json(index_file)
        self.names: list[str] = list(self.index["tensors"])
        self.corpora = {side: _load_corpus(folder, side) for side in SIDES}
        self.shards = {side: [_open_shard(folder, side, n) for n in range(self._count(side))] for side in SIDES}

    def _count(self, side: str) -> int:
        """Number of shards."""
        return -(-len(self.corpora[side]) // int(self.index["per_shard"]))

    def corpus(self, side: str) -> Corpus:
        """The samples of a side as token ids."""
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        """The samples of `index` int64 [B] with their features."""
        rows = self.corpora[side].rows(index)
        length, stored = rows.tokens.shape[1], {}
        for name in self.names:
            stored[name] = torch.stack([self._row(side, name, int(n)) for n in index])
        # padded to the longest sample of the side; a layer per sequence has one column
        cut = {name: t[:, :length] if name != "layer" or t.shape[1] > 1 else t for name, t in stored.items()}
        features = TargetFeatures(cut["last"], cut.get("mid"), cut.get("layer"), cut.get("aux"), cut.get("embeddings"))
        if SCORES in cut:  # samples with images
            features.kept = kept_slots(cut[SCORES], share_of(side, index, self.keep))
        return rows, features

    def _row(self, side: str, name: str, sample: int) -> Tensor:
        """One sample's tensor, read from its shard without the others."""
        shard, row = divmod(sample, int(self.index["per_shard"]))
        entry = self.shards[side][shard].get(name)
        if entry is None:
            raise InputError(
                f"{self.folder}: {side} shard {shard} holds no tensor {name}; extract it again", tensor=name
            )
        size = (entry.end - entry.start) // entry.shape[0]
        out = torch.empty(entry.shape[1:], dtype=entry.dtype)
        with entry.file.open("rb", buffering=0) as handle:
            handle.seek(entry.start + row * size)
            if handle.readinto(out.view(torch.uint8).numpy().reshape(-1).data) != size:
                raise InputError(f"{entry.file}: truncated; extract it again", file=entry.file)
        return out

    def check(self, fingerprint: str, select: str, aux_layers: tuple[int, ...]) -> None:
        """Raise MismatchError for features of another target, of another selection, or without the layers that the
        draft reads. With the selection `none` intermediate features are not read."""
        if self.index["fingerprint"] != fingerprint:
            raise MismatchError(f"{self.folder}: holds features of another target; extract them from this one")
        if select == "none":
            self.names = [name for name in self.names if name not in ("mid", "layer")]
        elif self.index["select"] != select:
            raise MismatchError(
                f"{self.folder}: was extracted with `select` {self.index['select']}, not {select}; use that one",
                field="select",
            )
        if aux_layers and tuple(self.index["aux_layers"]) != aux_layers:
            raise MismatchError(
                f"{self.folder}: holds no outputs of layers {list(aux_layers)}; extract with `reads` layers",
                field="reads",
            )


def shard_name(side: str, shard: int) -> str:
    """File name of a shard."""
    return f"{side}-{shard:05d}.safetensors"


def _open_shard(folder: Path, side: str, shard: int) -> dict[str, TensorEntry]:
    file = folder / shard_name(side, shard)
    if not file.is_file():
        raise InputError(f"{file}: file not found; extract the features again", file=file)
    return read_header(file)


def save_corpus(folder: Path, side: str, corpus: Corpus) -> None:
    """Write the token ids of a side."""
    tensors = {"tokens": corpus.tokens.int(), "mask": corpus.mask, "lengths": corpus.lengths}
    save_tensors(folder / f"{side}.safetensors", tensors)


def _load_corpus(folder: Path, side: str) -> Corpus:
    file = folder / f"{side}.safetensors"
    tensors = load_tensors(file)
    if set(tensors) != {"tokens", "mask", "lengths"}:
        raise InputError(f"{file}: is not a corpus; extract the features again", file=file)
    return Corpus(tensors["tokens"].long(), tensors["mask"], tensors["lengths"])


def save_shard(folder: Path, side: str, shard: int, features: TargetFeatures, scores: Tensor | None = None) -> None:
    """Write one shard, in the target's dtype; it is complete or not there. scores: of `MultimodalSource.scored`, with
    images."""
    tensors = {**{name: getattr(features, name) for name in STORED}, SCORES: scores}
    save_tensors(folder / shard_name(side, shard), {k: v.contiguous() for k, v in tensors.items() if v is not None})


def save_index(folder: Path, index: dict[str, Any]) -> None:
    """Write features.json."""
    write_json(folder / INDEX, index)
