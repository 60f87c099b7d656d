"""The reference model that sees: the reference model, a low-rank change of its linears, and a vision part, in `vlm/`.

Only what differs is in the package; the folder that `--model reference-vlm` means is put together on first use.
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

TAKEN = ("config.json", "generation_config.json", "tokenizer_config.json")
WEIGHTS, DELTA = "model.safetensors", "delta.safetensors"
SHIPPED = ("vision.json", "vision.safetensors", "chat_template.jinja", "MODEL_CARD.md")
IMAGE = "<|image|>"  # what stands for an image in text


def path() -> Path:
    """The folder of what ships: vision part, chat template, MODEL_CARD.md."""
    return reference.path() / "vlm"


def digest() -> str:
    """Identity of the model: of every file that it is made from."""
    names = [reference.path() / name for name in (*TAKEN, WEIGHTS, "tokenizer.json")]
    names += [path() / name for name in (*SHIPPED, DELTA)]
    return digest_bytes(*(name.read_bytes() for name in names))


def write_model(folder: Path) -> None:
    """Put the model together in an empty folder."""
    for name in TAKEN:
        shutil.copyfile(reference.path() / name, folder / name)
    for name in SHIPPED:
        shutil.copyfile(path() / name, folder / name)
    change = {name: read_tensor(entry) for name, entry in read_header(path() / DELTA).items()}
    entries = read_header(reference.path() / WEIGHTS)
    writer = SafetensorsWriter(folder, [TensorPlan(name, one.dtype, one.shape) for name, one in entries.items()])
    for name, entry in entries.items():
        weight = read_tensor(entry)
        low = [change.get(f"{name}.{factor}") for factor in "ab"]
        writer.write(name, weight if low[0] is None or low[1] is None else merge_low_rank(weight, low[0], low[1]))
    writer.sync()
    image_token = int(read_json(path() / "vision.json")["image_token"])
    tokenizer = with_image_token(read_json(reference.path() / "tokenizer.json"), image_token)
    write_json(folder / "tokenizer.json", tokenizer)


def merge_low_rank(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + B A in the dtype of the weight [n, k]; a [r, k], b [n, r], both taken as bfloat16, as they are stored."""
    low = b.to(torch.bfloat16).double() @ a.to(torch.bfloat16).double()
    return (weight.double() + low).to(weight.dtype)


def with_image_token(tokenizer: dict[str, Any], token: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer whose last merge, token id `token`, is given up for one that means an image: no text
    but its own name makes it."""
    tokenizer = json.loads(json.dumps(tokenizer))
    model = tokenizer["model"]
    name = next((name for name, number in model["vocab"].items() if number == token), None)
    if name is None or not model["merges"] or "".join(model["merges"][-1]) != name:
        raise InputError(f"token {token} is not the last merge of the tokenizer; others may be built on it")
    del model["vocab"][name]
    model["merges"].pop()
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [*tokenizer["added_tokens"], {"id": token, "content": IMAGE, "special": True, **plain}]
    tokenizer["added_tokens"] = sorted(added, key=lambda one: int(one["id"]))
    return dict(tokenizer)
