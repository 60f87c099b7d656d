"""Stored features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.draft.training.corpus import of_windows
from dfrot.draft.training.sources import LiveFeatures
from dfrot.draft.training.stored_features import StoredFeatures
from dfrot.errors import InputError, MismatchError
from dfrot.generation.target import Target

Get = Callable[..., Target]


def online(target: Target, select: str = "sample") -> LiveFeatures:
    """Text that the target wrote itself, so that there is something to learn."""
    from dfrot.draft.training.regenerate import continuations

    source = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 96, (12, 6), generator=source)
    rows = torch.cat([prompts, continuations(target, prompts, 18)], 1)
    return LiveFeatures(target, of_windows(rows[:8], 6), of_windows(rows[8:], 6), select)


def test_stored_features_equal_computed_ones(targets: Get, tmp_path: Path) -> None:
    from dfrot.draft.training.stored_features import save_corpus, save_index, save_shard

    source = online(targets("llama-kv4"))
    for side in ("train", "held_out"):
        corpus = source.corpus(side)
        save_corpus(tmp_path, side, corpus)
        for shard, index in enumerate(torch.split(torch.arange(len(corpus)), 3)):
            save_shard(tmp_path, side, shard, source.batch(side, index)[1])
    index = {
        "fingerprint": "x",
        "select": "sample",
        "aux_layers": [],
        "per_shard": 3,
        "tensors": ["last", "layer", "mid"],
    }
    save_index(tmp_path, index)
    stored = StoredFeatures(tmp_path)
    for side, rows in (("train", torch.tensor([7, 0, 4])), ("held_out", torch.tensor([1, 3]))):
        for ours, theirs in zip(vars(stored.batch(side, rows)[1]).values(), vars(source.batch(side, rows)[1]).values()):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
    stored.check("x", "sample", ())
    stored.check("x", "none", ())
    assert stored.batch("train", torch.tensor([1]))[1].mid is None, "a draft without an intermediate feature got one"
    stored = StoredFeatures(tmp_path)
    for arguments in (("y", "sample", ()), ("x", "token", ()), ("x", "none", (1, 2, 3))):
        with pytest.raises(MismatchError):
            stored.check(*arguments)
    shard = tmp_path / "train-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        StoredFeatures(tmp_path)
