"""The reference VLM: the reference model, a low-rank change of its linears, and a vision part.

The package holds only what differs, in `vlm/`. The checkpoint `reference-vlm` is built from it on first use.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot import reference
from dfrot.checkpoint import read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError
from dfrot.files import digest_bytes, read_json, write_json

COPIED = ("config.json", "generation_config.json", "tokenizer_config.json")
WEIGHTS, DELTA = "model.safetensors", "delta.safetensors"
SHIPPED = ("vision.json", "vision.safetensors", "chat_template.jinja", "MODEL_CARD.md")
IMAGE = "<|image|>"  # text of the image token


def path() -> Path:
    """The folder of what the package holds: vision part, low-rank change, chat template, MODEL_CARD.md."""
    return reference.path() / "vlm"


def digest() -> str:
    """Digest of every file that the model is built from."""
    names = [reference.path() / name for name in (*COPIED, WEIGHTS, "tokenizer.json")]
    names += [path() / name for name in (*SHIPPED, DELTA)]
    return digest_bytes(*(name.read_bytes() for name in names))


def write_model(folder: Path) -> None:
    """Build the model in the empty folder `folder`."""
    for name in COPIED:
        shutil.copyfile(reference.path() / name, folder / name)
    for name in SHIPPED:
        shutil.copyfile(path() / name, folder / name)
    factors = {name: read_tensor(entry) for name, entry in read_header(path() / DELTA).items()}
    entries = read_header(reference.path() / WEIGHTS)
    writer = SafetensorsWriter(folder, [TensorPlan(name, entry.dtype, entry.shape) for name, entry in entries.items()])
    for name, entry in entries.items():
        weight = read_tensor(entry)
        a, b = factors.get(f"{name}.a"), factors.get(f"{name}.b")
        writer.write(name, weight if a is None or b is None else merge_low_rank(weight, a, b))
    writer.sync()
    image_token = int(read_json(path() / "vision.json")["image_token"])
    tokenizer = with_image_token(read_json(reference.path() / "tokenizer.json"), image_token)
    write_json(folder / "tokenizer.json", tokenizer)


def merge_low_rank(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + B A in the dtype of the weight [n, k]; a [r, k] and b [n, r] are rounded to bfloat16, as they are stored."""
    change = b.to(torch.bfloat16).double() @ a.to(torch.bfloat16).double()
    return (weight.double() + change).to(weight.dtype)


def with_image_token(tokenizer: dict[str, Any], token: int) -> dict[str, Any]:
    """A copy of a byte-level BPE tokenizer in which the token of the last merge becomes the image token: only its own
    text encodes to it. tokenizer: content of tokenizer.json; token: the id of the last merge.

    Raises InputError where that token is not the last merge."""
    tokenizer = json.loads(json.dumps(tokenizer))
    model = tokenizer["model"]
    text = next((text for text, number in model["vocab"].items() if number == token), None)
    if text is None or not model["merges"] or "".join(model["merges"][-1]) != text:
        raise InputError(f"token {token} is not the last merge of the tokenizer; others may be built on it")
    del model["vocab"][text]
    model["merges"].pop()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [*tokenizer["added_tokens"], {"id": token, "content": IMAGE, "special": True, **flags}]
    tokenizer["added_tokens"] = sorted(added, key=lambda entry: int(entry["id"]))
    return dict(tokenizer)
