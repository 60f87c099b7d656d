"""Writing a checkpoint with some tensors edited, one tensor in memory at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import InputError
from dfrot.files import read_json, write_json
from dfrot.outliers.fixes.base import Change, Edit
from dfrot.quant.config import DfqConfig


def rewrite(source: Checkpoint, folder: Path, change: Change) -> None:
    """Write `source` with `change` applied into the existing `folder`.

    Raises InputError for a value that the stored dtype cannot hold, or a tokenizer that cannot take a prefix."""
    plans = [TensorPlan(name, entry.dtype, entry.shape) for name, entry in source.entries.items()]
    writer = SafetensorsWriter(folder, plans)
    for plan in plans:
        if edits := change.tensors.get(plan.name, []):
            writer.write(plan.name, _edited(source, plan, edits))
        else:
            writer.copy(source, plan.name)
    writer.sync()
    config = copy.deepcopy(source.config)
    if change.resets:
        config["quantization_config"] = DfqConfig(resets=tuple(change.resets)).to_dict()
    write_json(folder / "config.json", config)
    copy_tokenizer(source.path, folder)
    if change.prefix:
        write_json(folder / "tokenizer.json", tokenizer_with_prefix(source.path / "tokenizer.json", change.prefix))


def _edited(source: Checkpoint, plan: TensorPlan, edits: list[Edit]) -> Tensor:
    """A tensor after its edits, in its stored dtype. Raises InputError where it overflows."""
    value = source.read(plan.name)
    for edit in edits:
        value = edit(value)
    value = value.to(plan.dtype)
    if not bool(torch.isfinite(value).all()):
        message = f"{source.path}: tensor {plan.name}: the edit overflows {plan.dtype}; use bfloat16"
        raise InputError(message, file=source.path, tensor=plan.name)
    return value


def tokenizer_with_prefix(path: Path, prefix: list[int]) -> dict[str, Any]:
    """The tokenizer.json at `path`, changed to put exactly the tokens `prefix` before a text.

    Raises InputError for a token that it does not have."""
    tokenizer = read_json(path)
    texts = _token_texts(tokenizer)
    if missing := [token for token in prefix if token not in texts]:
        raise InputError(f"{path}: holds no token {missing[0]}; a prefix needs the tokens of this model", file=path)
    template = _prefix_template(prefix, texts)
    old = tokenizer.get("post_processor")
    if old is not None and old.get("type") == "Sequence":
        kept = [step for step in old["processors"] if step.get("type") != "TemplateProcessing"]
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [*kept, template]}
    elif old is None or old.get("type") == "TemplateProcessing":
        tokenizer["post_processor"] = template
    else:
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [old, template]}
    return dict(tokenizer)


def _prefix_template(prefix: list[int], texts: dict[int, str]) -> dict[str, Any]:
    """A TemplateProcessing step of the tokenizers library that puts `prefix` first."""
    names = {f"<prefix-{i}>": token for i, token in enumerate(prefix)}
    head = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    a, b = ({"Sequence": {"id": sequence, "type_id": 0}} for sequence in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*head, a],
        "pair": [*head, a, b],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [texts[token]]} for name, token in names.items()
        },
    }


def _token_texts(tokenizer: Any) -> dict[int, str]:
    """Token id -> its text, from the vocabulary and the added tokens."""
    vocab = tokenizer["model"]["vocab"] if isinstance(tokenizer, dict) and "model" in tokenizer else {}
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    texts = {int(token): str(text) for text, token in pairs}
    return texts | {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens", [])}
