"""A checkpoint with some tensors edited, written tensor by tensor: nothing but the edited tensor is in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import InputError
from dfrot.files import read_json, write_json
from dfrot.outliers.fixes.base import Change
from dfrot.quant.config import DfqConfig


def rewrite(source: Checkpoint, folder: Path, change: Change) -> None:
    """Write `source` with `change` applied into the existing `folder`. Raises InputError for a value that the stored
    dtype cannot hold, or a tokenizer that cannot take a prefix."""
    plan = [TensorPlan(name, entry.dtype, entry.shape) for name, entry in source.entries.items()]
    writer = SafetensorsWriter(folder, plan)
    for one in plan:
        edits = change.tensors.get(one.name, [])
        if edits:
            value = source.read(one.name)
            for edit in edits:
                value = edit(value)
            value = value.to(one.dtype)
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"{source.path}: tensor {one.name}: the edit overflows {one.dtype}; use bfloat16")
            writer.write(one.name, value)
            continue
        writer.copy(source, one.name)
    writer.sync()
    config = copy.deepcopy(source.config)
    if change.resets:
        config["quantization_config"] = DfqConfig(resets=tuple(change.resets)).to_dict()
    write_json(folder / "config.json", config)
    copy_tokenizer(source.path, folder)
    if change.prefix:
        write_json(folder / "tokenizer.json", tokenizer_with_prefix(source.path / "tokenizer.json", change.prefix))


def tokenizer_with_prefix(path: Path, prefix: list[int]) -> dict[str, Any]:
    """The tokenizer.json at `path`, putting exactly the tokens `prefix` before a text."""
    value = read_json(path)
    words = _words(value)
    if missing := [token for token in prefix if token not in words]:
        raise InputError(f"{path}: holds no token {missing[0]}; a prefix needs the tokens of this model")
    names = {f"<prefix-{i}>": token for i, token in enumerate(prefix)}
    head = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    a, b = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [*head, a],
        "pair": [*head, a, b],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [words[token]]} for name, token in names.items()
        },
    }
    old = value.get("post_processor")
    if old is not None and old.get("type") == "Sequence":
        kept = [one for one in old["processors"] if one.get("type") != "TemplateProcessing"]
        value["post_processor"] = {"type": "Sequence", "processors": [*kept, template]}
    elif old is None or old.get("type") == "TemplateProcessing":
        value["post_processor"] = template
    else:
        value["post_processor"] = {"type": "Sequence", "processors": [old, template]}
    return dict(value)


def _words(value: Any) -> dict[int, str]:
    """Token id -> its entry, from the vocabulary and the added tokens."""
    vocab = value["model"]["vocab"] if isinstance(value, dict) and "model" in value else {}
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    found = {int(token): str(word) for word, token in pairs}
    return found | {int(one["id"]): str(one["content"]) for one in value.get("added_tokens", [])}
