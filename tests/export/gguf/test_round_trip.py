"""What we write as GGUF is read back: tensors, configuration and tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.data.tokenizer import load_tokenizer
from dfrot.export import engines
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.run import export
from dfrot.inputs import open_described_model
from dfrot.runtime.load import load_model

pytest.importorskip("gguf")

QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": ({}, ()),
    "llama with biases": ({"attention_bias": True}, (*QKV, "self_attn.o_proj")),
    "llama, tied head": ({"tie_word_embeddings": True}, ()),
    "llama, head_dim apart": ({"head_dim": 64}, ()),
    "llama 3.1 rope": ({"rope_scaling": ROPE}, ()),
    "linear rope": ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ()),
    "mistral": ({"model_type": "mistral"}, ()),
    "qwen2 with biases": ({"model_type": "qwen2"}, QKV),
    "granite": ({"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0}, ()),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, ()),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that stand for files are written here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


@pytest.mark.parametrize("name", MODELS)
def test_16_bits(name: str, kit: SimpleNamespace, own: Any, ids: Tensor, tmp_path: Path) -> None:
    """The same bytes of every tensor, and the same logits."""
    changes, biased = MODELS[name]
    model = kit.build(tmp_path / "model", bias=biased, **changes)
    export(model, "gguf", tmp_path / "out")
    read, original = open_described_model(tmp_path / "out")[0], Checkpoint.open(model)
    assert set(read.entries) == set(original.entries)
    for key in read.entries:
        assert torch.equal(read.read(key), original.read(key)), key
    logits = engines.transformers_logits(load_model(read.path, torch.float32))(ids)
    torch.testing.assert_close(logits, own(model), rtol=1e-4, atol=1e-4)


def test_tokenizer(dense: Path, tmp_path: Path) -> None:
    export(dense, "gguf", tmp_path / "out")
    ours, original = load_tokenizer(open_described_model(tmp_path / "out")[0].path), load_tokenizer(dense)
    draw = random.Random(0)
    pieces = ["the", " the", "in", "\f", "</s>", "  ", "\n", "x1", "\u00e9", "\u65e5\u672c", "'s", "!?", "0", "\t"]
    for _ in range(100):
        text = "".join(draw.choice(pieces) for _ in range(12))
        assert ours(text)["input_ids"] == original(text)["input_ids"], text
    assert ours.chat_template == original.chat_template


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w4a16-g32-sym", "w5a16-g32", "w8a16-g32"])
def test_packed(scheme: str, pack: Callable[[str], Path], own: Any, ids: Tensor, tmp_path: Path) -> None:
    """Dequantized in float32, the codes compute what the packed checkpoint computes."""
    export(pack(scheme), "gguf", tmp_path / "out")
    read, _ = open_described_model(tmp_path / "out" / FILE_NAME)
    logits = engines.transformers_logits(load_model(read.path, torch.float32))(ids)
    assert float((logits - own(pack(scheme))).norm() / logits.norm()) < 1e-2
