"""Tiny random Llama-shaped folders with a byte-level tokenizer and a text to go with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan

SIZES = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(name, dtype=bfloat16, **config) -> folder."""

    def build(name: str = "model", dtype: torch.dtype = torch.bfloat16, seed: int = 0, **changes: Any) -> Path:
        config = {**SIZES, **changes}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        _tokenizer(folder)
        arch = describe(config)
        shapes = {**arch.tensors(), **arch.biases()}
        writer = SafetensorsWriter(folder, [TensorPlan(key, dtype, shape) for key, shape in shapes.items()])
        generator = torch.Generator().manual_seed(seed)
        for key, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.3
            writer.write(key, (values * scale + (1.0 if "norm" in key else 0.0)).to(dtype))
        return folder

    return build


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A dataset: a text file of some kilobytes."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n}: the square of {n} is {n * n}.\n" for n in range(200)))
    return str(path)


@pytest.fixture
def logits(readings: Any) -> Callable[[Path], torch.Tensor]:
    """logits(folder): of 40 tokens, as dfq reads the folder block by block."""
    tokens = torch.arange(40).reshape(1, 40) * 5
    return lambda folder: readings.dfq_logits(folder, tokens)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """contents(folder) -> the bytes of every file in it, by path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    return read
