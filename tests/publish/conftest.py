"""A folder without faults in the layout of compressed-tensors, with its base model, and packed and exported models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.export.check import quantize_by_rounding
from dfrot.export.run import export
from dfrot.publish.published_folder import PublishedFolder, read_published_folder
from dfrot.quant.scheme import QuantScheme
from dfrot.tensor_file import save_tensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 300,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}},
    },
}
TOKENIZER: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "normalizer": None,
}
CARD = "---\nlicense: apache-2.0\n---\n# Base\n"


def tensors() -> dict[str, torch.Tensor]:
    """What a quantized model of two layers holds, a linear of each."""
    made: dict[str, torch.Tensor] = {"model.embed_tokens.weight": torch.zeros(300, 8, dtype=torch.bfloat16)}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj"
        made[f"{name}.weight_packed"] = torch.zeros(8, 1, dtype=torch.int32)
        made[f"{name}.weight_scale"] = torch.ones(8, 1, dtype=torch.bfloat16)
    return made | {"lm_head.weight": torch.zeros(300, 8, dtype=torch.bfloat16)}


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change the value in a JSON file."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    write_json(file, value)


def write_texts(folder: Path) -> None:
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>"})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_json(folder / "generation_config.json", {"bos_token_id": 3, "eos_token_id": [2, 3]})


def shard(folder: Path) -> None:
    """Replace model.safetensors by two shards and their index."""
    (folder / "model.safetensors").unlink()
    weights = tensors()
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [names[:3], names[3:]]
    for file, part in zip(files, parts):
        save_tensors(folder / file, {name: weights[name] for name in part})
    total = sum(tensor.nbytes for tensor in weights.values())
    weight_map = {name: file for file, part in zip(files, parts) for name in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file: test modules cannot import a conftest."""
    return SimpleNamespace(edit=edit, write_json=write_json, shard=shard, tensors=tensors, tokenizer=TOKENIZER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes every check."""
    place = tmp_path / "export"
    place.mkdir()
    write_json(place / "config.json", CONFIG)
    save_tensors(place / "model.safetensors", tensors())
    write_texts(place)
    return place


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The small files of its base model."""
    place = tmp_path / "base"
    place.mkdir()
    write_json(place / "config.json", {key: value for key, value in CONFIG.items() if key != "quantization_config"})
    write_texts(place)
    (place / "README.md").write_text(CARD)
    return place


@pytest.fixture
def subject(folder: Path, base: Path) -> Callable[..., PublishedFolder]:
    """subject(**changes) -> the folder as the checks see it, read anew."""

    def read(**changes: Any) -> PublishedFolder:
        made = read_published_folder(folder, changes.pop("repository", "org/name"))
        made.base, made.base_folder, made.license = "org/base", base, "apache-2.0"
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    return read


@pytest.fixture
def packed(small_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A packed checkpoint, w4a16 in groups of 32, that every format holds."""
    model = small_llama("model", hidden_size=64, intermediate_size=64)
    return quantize_by_rounding(model, QuantScheme.parse("w4a16-g32"), tmp_path / "packed")


@pytest.fixture
def exported(packed: Path, tmp_path: Path) -> Callable[[str], Path]:
    """exported(format) -> the export of `packed`."""

    def make(target: str) -> Path:
        if target == "gguf":
            pytest.importorskip("gguf")
        export(packed, target, tmp_path / target)
        return tmp_path / target

    return make
