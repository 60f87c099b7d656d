"""Drafts on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.store import check_target, load_draft, save_draft
from dfrot.errors import DfqError, InputError, MismatchError
from dfrot.files import write_json


def test_drafts_load_and_those_of_other_targets_are_refused(
    kit: SimpleNamespace, tmp_path: Path, reference: Path
) -> None:
    draft = kit.random_draft()
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    assert loaded.config == draft.config
    for name, value in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(MismatchError, match="vocabulary"):
        check_target(draft.config, reference, 4096, 64, force=True)
    with pytest.raises(MismatchError, match="is not the target"):
        check_target(draft.config, reference, kit.vocab, 64)
    check_target(draft.config, reference, kit.vocab, 64, force=True)
    config = json.loads((tmp_path / "draft.json").read_text())
    for change, message in (
        ({"arch": "unknown"}, "unknown"),
        ({"surprise": 1}, "unknown key"),
        ({"hidden_size": -1}, "positive integer"),
        ({"intermediate_size": 128}, "shape"),
        ({"intermediate_size": 10**9}, "shape"),  # refused before it takes memory
        ({"rms_norm_eps": 0}, "above 0"),
        ({"rope_theta": "10000"}, "a finite number"),
        ({"cross": 1}, "true or false"),
        ({"select": None}, "a text"),
        ({"num_final_layers": 1.5}, "an integer"),
        ({"num_final_layers": 2}, "missing"),
        ({"num_final_layers": 0}, "not part of"),
    ):
        write_json(tmp_path / "draft.json", {**config, **change})
        with pytest.raises(DfqError, match=message) as caught:
            load_draft(tmp_path)
        assert "\n" not in str(caught.value)
    write_json(tmp_path / "draft.json", {**config, "max_position_embeddings": 10**9})
    assert load_draft(tmp_path).rotary.table(1)[0].shape[0] < 10**4
    write_json(tmp_path / "draft.json", config)
    file = tmp_path / "draft.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        load_draft(tmp_path)
