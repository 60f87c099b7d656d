"""Where training features come from: the running target, or shards that `dfq draft extract` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_header
from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.multimodal_source import kept_slots, share_of
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.errors import InputError, MismatchError
from dfrot.files import read_json, write_json
from dfrot.generation.target import Target
from dfrot.tensor_file import load_tensors, save_tensors
from dfrot.vision.settings import KEEP

INDEX = "features.json"
SIDES = ("train", "held_out")
SCORES = "scores"  # of image tokens, by which slots are kept
STORED = ("last", "mid", "layer", "aux", "embeddings")


class FeatureSource(Protocol):
    """Samples of one side (train or held_out) with their features."""

    def corpus(self, side: str) -> Corpus: ...

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]: ...


class LiveFeatures:
    """The target computes features when they are asked for."""

    def __init__(self, target: Target, train: Corpus, held_out: Corpus, select: str) -> None:
        self.target, self.selection = target, FeatureSelection.parse(select)
        self.corpora = dict(zip(SIDES, (train, held_out)))

    def corpus(self, side: str) -> Corpus:
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        rows = self.corpora[side].rows(index)
        chooser = FeatureChooser(self.selection, rows.mask, self.target.n_layers)
        return rows, self.target.features(rows.tokens, chooser)


class StoredFeatures:
    """Shards on disk: `part-NNNNN.safetensors` of `features.json`'s `per_shard` samples each, sides one by one."""

    def __init__(self, folder: Path, keep: float = KEEP) -> None:
        """keep: share of image tokens that held-out samples keep, where there are images."""
        self.folder, self.keep = folder, keep
        where = folder / INDEX
        if not where.is_file():
            raise InputError(f"{folder}: no {INDEX}; is this the --out of dfq draft extract?")
        self.index: dict[str, Any] = read_json(where)
        self.names: list[str] = list(self.index["tensors"])
        self.corpora = {side: _corpus(folder, side) for side in SIDES}
        self.parts = {side: [_part(folder, side, n) for n in range(self.shards(side))] for side in SIDES}

    def shards(self, side: str) -> int:
        return -(-len(self.corpora[side]) // int(self.index["per_shard"]))

    def corpus(self, side: str) -> Corpus:
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        rows = self.corpora[side].rows(index)
        length, found = rows.tokens.shape[1], {}
        for name in self.names:
            found[name] = torch.stack([self._row(side, name, int(n)) for n in index])
        cut = {name: t[:, :length] if name != "layer" or t.shape[1] > 1 else t for name, t in found.items()}
        features = TargetFeatures(cut["last"], cut.get("mid"), cut.get("layer"), cut.get("aux"), cut.get("embeddings"))
        if SCORES in cut:  # samples with images
            features.kept = kept_slots(cut[SCORES], share_of(side, index, self.keep))
        return rows, features

    def _row(self, side: str, name: str, sample: int) -> Tensor:
        shard, row = divmod(sample, int(self.index["per_shard"]))
        entry = self.parts[side][shard].get(name)
        if entry is None:
            raise InputError(f"{self.folder}: {side} shard {shard} holds no tensor {name}; extract it again")
        size = (entry.end - entry.start) // entry.shape[0]
        out = torch.empty(entry.shape[1:], dtype=entry.dtype)
        with entry.file.open("rb", buffering=0) as handle:
            handle.seek(entry.start + row * size)
            if handle.readinto(out.view(torch.uint8).numpy().reshape(-1).data) != size:
                raise InputError(f"{entry.file}: truncated; extract it again")
        return out

    def check(self, fingerprint: str, select: str, aux_layers: tuple[int, ...]) -> None:
        """Refuse features of another target, of another selection, or without the layers an eagle3 draft reads. With
        the selection `none` intermediate features stay on the disk."""
        if self.index["fingerprint"] != fingerprint:
            raise MismatchError(f"{self.folder}: holds features of another target; extract them from this one")
        if select == "none":
            self.names = [name for name in self.names if name not in ("mid", "layer")]
        elif self.index["select"] != select:
            raise MismatchError(
                f"{self.folder}: was extracted with --feature-select {self.index['select']}, not {select}; use that one"
            )
        if aux_layers and tuple(self.index["aux_layers"]) != aux_layers:
            raise MismatchError(
                f"{self.folder}: holds no outputs of layers {list(aux_layers)}; extract with --arch eagle3"
            )


def part_name(side: str, shard: int) -> str:
    return f"{side}-{shard:05d}.safetensors"


def _part(folder: Path, side: str, shard: int) -> dict[str, TensorEntry]:
    file = folder / part_name(side, shard)
    if not file.is_file():
        raise InputError(f"{file}: file not found; extract the features again")
    return read_header(file)


def save_corpus(folder: Path, side: str, corpus: Corpus) -> None:
    tensors = {"tokens": corpus.tokens.int(), "mask": corpus.mask, "lengths": corpus.lengths}
    save_tensors(folder / f"{side}.safetensors", tensors)


def _corpus(folder: Path, side: str) -> Corpus:
    found = load_tensors(folder / f"{side}.safetensors")
    if set(found) != {"tokens", "mask", "lengths"}:
        raise InputError(f"{folder / side}.safetensors: is not a corpus; extract the features again")
    return Corpus(found["tokens"].long(), found["mask"], found["lengths"])


def save_shard(folder: Path, side: str, shard: int, features: TargetFeatures, scores: Tensor | None = None) -> None:
    """One shard, in the target's dtype, whole or not there. scores: of `VisualSource.scored`, with images."""
    tensors = {**{name: getattr(features, name) for name in STORED}, SCORES: scores}
    save_tensors(folder / part_name(side, shard), {k: v.contiguous() for k, v in tensors.items() if v is not None})


def save_index(folder: Path, index: dict[str, Any]) -> None:
    write_json(folder / INDEX, index)
