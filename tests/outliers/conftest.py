"""The reference model (outliers known by construction), the same model without them, and a tiny model with a spike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot import reference
from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan

# dfrot/reference/MODEL_CARD.md
MASSIVE = {31: 2400.0, 147: -1440.0, 202: 480.0}
TOKENS = {0, 4095}
GAINS = {11: 13.3, 58: 10.2, 96: 8.6, 143: 7.0, 180: 7.0, 230: 5.3}


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(folder, plan)
    for name, tensor in tensors.items():
        writer.write(name, tensor)


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model with its plants taken out: gains divided, the columns that read them multiplied, the planted
    embedding entries set to zero."""
    source = Checkpoint.open(reference.path())
    folder = tmp_path_factory.mktemp("control") / "control"
    shutil.copytree(source.path, folder)
    factor = torch.ones(256)
    factor[list(GAINS)] = torch.tensor(list(GAINS.values()))
    tensors = {}
    for name in source.entries:
        tensor = source.read(name).clone()
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensor = (tensor.float() / factor).to(tensor.dtype)
        elif name.endswith(tuple(f"{one}_proj.weight" for one in ("q", "k", "v", "gate", "up"))):
            tensor = (tensor.float() * factor).to(tensor.dtype)
        elif name == "model.embed_tokens.weight":
            tensor[torch.tensor(sorted(TOKENS))[:, None], torch.tensor(list(MASSIVE))] = 0.0
        tensors[name] = tensor
    (folder / "model.safetensors").unlink()
    write(folder, tensors)
    return folder


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "torch_dtype": "float32",
}


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


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, change=None, **config) -> a random checkpoint; `change(tensors)` edits it before it is written."""

    def build(name: str = "model", change: Any = None, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {**CONFIG, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        _tokenizer(folder)
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for key, shape in describe(config).tensors().items():
            values = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.0)
            tensors[key] = values + (1.0 if "norm" in key else 0.0)
        if change is not None:
            change(tensors)
        write(folder, tensors)
        return folder

    return build


ROW, COLUMN, TOKEN = 5, 7, "Z"


def _spike(tensors: dict[str, torch.Tensor]) -> None:
    """Layer 1: intermediate channel 7 opens for the token Z alone; one entry of down_proj writes it to channel 5."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    embed = tensors["model.embed_tokens.weight"]
    embed[:, 0] = 0.0
    embed[alphabet.index(TOKEN) + 1] = 0.0
    embed[alphabet.index(TOKEN) + 1, 0] = 3.0
    for layer in range(3):  # nobody else writes channel 0, the channel that says Z
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{name}.weight"][0] = 0.0
    for name in ("gate", "up"):
        row = tensors[f"model.layers.1.mlp.{name}_proj.weight"][COLUMN]
        row.zero_()
        row[0] = 2.0
    tensors["model.layers.1.mlp.down_proj.weight"][ROW, COLUMN] = 40.0


@pytest.fixture
def spike() -> SimpleNamespace:
    """change: the edit that plants it; row, column of down_proj in block 1; token: the one that carries it."""
    return SimpleNamespace(change=_spike, row=ROW, column=COLUMN, token=TOKEN)


@pytest.fixture(scope="session")
def planted() -> SimpleNamespace:
    """What the reference model's card says."""
    return SimpleNamespace(massive=MASSIVE, tokens=TOKENS, gains=GAINS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {n} of a text that is long enough; Z ends it\n" for n in range(400)))
    return file
