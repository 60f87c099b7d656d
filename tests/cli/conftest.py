"""A tiny random checkpoint with a byte tokenizer, a text for it, and the command run in-process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def dfq(monkeypatch: pytest.MonkeyPatch) -> Run:
    """dfq("rotate", "--model", folder, ...) -> exit code and both streams."""
    from dfrot_cli.main import main

    monkeypatch.setattr("dfrot_cli.show.QUIET_EVERY", 1e9)  # no progress lines, however slow the machine

    def run(*arguments: object, stdin: bytes | None = None) -> Ran:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, **{token: index + 1 for index, token in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write(folder: Path, tensors: dict[str, torch.Tensor], shard_bytes: int = 4 << 30) -> None:
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(folder, plan, shard_bytes=shard_bytes)
    for name, tensor in tensors.items():
        writer.write(name, tensor)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(name, shards=False, seed=0, **config) -> a random checkpoint folder."""

    def build(name: str = "model", shards: bool = False, seed: int = 0, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {**CONFIG, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        _tokenizer(folder)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        arch = describe(config)
        for key, shape in {**arch.tensors(), **arch.biases()}.items():
            values = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.2)
            tensors[key] = (values + (1.0 if "norm" in key else 0.0)).bfloat16()
        write(folder, tensors, 20_000 if shards else 4 << 30)
        return folder

    return build


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """rewrite(folder, {name: tensor or None}) replaces or removes tensors of a single-shard checkpoint."""

    def change(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
        checkpoint = Checkpoint.open(folder)
        tensors: dict[str, torch.Tensor | None] = {name: checkpoint.read(name).clone() for name in checkpoint.entries}
        tensors.update(changes)
        (folder / "model.safetensors").unlink()
        write(folder, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    return change


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A dataset of some thousand tokens."""
    path = tmp_path / "words.txt"
    path.write_text("".join(f"line {n}: the square of {n} is {n * n}.\n" for n in range(300)))
    return path
