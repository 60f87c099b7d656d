"""Beside other engines: llama.cpp computes the same logits, transformers' own loader reads the same weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.export import engines
from dfrot.hub import resolve_model
from dfrot.runtime.load import load_model

IDS = torch.randint(2, 4000, (40,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that stand for files are written here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


def test_llama_cpp_computes_the_same(name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    """Within the rounding of its kernels: products of float32 matrices, caches in float16. Its graph of Llama has no
    sliding window, so Mistral is compared up to the window's width."""
    pytest.importorskip("llama_cpp")
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model(name))
    theirs = engines.load_gguf(file, context=64)(IDS)
    with torch.inference_mode():
        ours = load_model(resolve_model(str(file)))(input_ids=IDS[None], use_cache=False).logits[0]
    assert ours.shape == theirs.shape
    if "window" in name:
        ours, theirs = ours[:4], theirs[:4]
    distance = (ours - theirs).norm() / theirs.norm()
    assert distance < 5e-3, distance


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "BF16", "F16"])
@pytest.mark.parametrize("model_name", ["llama, tied head", "qwen2", "qwen3", "gemma3"])
def test_transformers_reads_the_same_weights(kind: str, model_name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    """Where its loader is right: no scaled frequencies, the default width of heads."""
    from transformers import AutoModelForCausalLM

    sizes = {"qwen3": {"head_dim": 128}, "gemma3": {"head_dim": 16}}.get(model_name, {})
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model(model_name, **sizes), kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    ours = load_model(resolve_model(str(file))).state_dict()
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value.to(ours[key].dtype)), key
