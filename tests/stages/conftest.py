"""Tiny random checkpoints with a tokenizer, optionally with online rotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.files import read_json, write_json
from dfrot.quant.config import DfqConfig
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.rotation.online import OnlineRotations

Build = Callable[..., Path]

CONFIG: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _tokenizer(folder: Path) -> None:
    """One token per byte, BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, **{token: index + 1 for index, token in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def _build(
    folder: Path, kind: str = "llama", seed: int = 0, online: bool = False, dtype: Any = torch.bfloat16, **changes: Any
) -> Path:
    """A random checkpoint. online: R3 and R4 declared (with random weights nothing has to be fused)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**CONFIG, **changes}), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    _tokenizer(folder)
    if online:
        config = read_json(folder / "config.json")
        arch = describe(config)
        rotations = OnlineRotations(hadamard_plan(arch.head_dim), hadamard_plan(arch.intermediate))
        config["quantization_config"] = DfqConfig(online=rotations).to_dict()
        write_json(folder / "config.json", config)
    return folder


@pytest.fixture(scope="session")
def build() -> Build:
    return _build


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset long enough for a few windows."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"word{i} is {i * i % 97}." for i in range(400)))
    return path


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    """Replace tensors of a single-shard checkpoint in place."""
    from dfrot.checkpoint import Checkpoint

    def change(folder: Path, **changed: torch.Tensor) -> None:
        checkpoint = Checkpoint.open(folder)
        tensors = {name: checkpoint.read(name).clone() for name in checkpoint.entries}
        tensors.update({name.replace("__", "."): value for name, value in changed.items()})
        (folder / "model.safetensors").unlink()
        writer = SafetensorsWriter(folder, [TensorPlan(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()])
        for name, tensor in tensors.items():
            writer.write(name, tensor)

    return change


@pytest.fixture
def interrupt_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """interrupt_step(n): the n-th optimizer step of all trainings from now on dies; returns the rates of the steps that
    were tried, as they come."""
    from dfrot.draft.training.optim import AdamW

    step = AdamW.step

    def arm(number: int) -> list[float]:
        tried: list[float] = []

        def dies(self: AdamW, lr: float) -> float:
            tried.append(lr)
            if len(tried) == number:
                raise KeyboardInterrupt
            return step(self, lr)

        monkeypatch.setattr(AdamW, "step", dies)
        return tried

    return arm
