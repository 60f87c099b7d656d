"""Every architecture: what is read from a file computes what the model computed that was written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dfrot.inputs.gguf.model import GGUFModel, read_model
from dfrot.inputs.gguf.tensors import read_rows


def model_of(found: GGUFModel) -> Any:
    """The transformers model with the configuration and weights of a file, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**found.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    state = {name: read_rows(rows, 0, 1 << 40, torch.float32) for name, rows in found.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if found.config["tie_word_embeddings"] else set())
    model.tie_weights()
    return model


def test_logits_are_those_of_the_model(name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.random_model(name)
    found = read_model(kit.write_gguf(tmp_path / "model.gguf", model))
    assert found.dtype == torch.float32
    state = model.state_dict()
    for key, rows in found.tensors.items():
        value = read_rows(rows, 0, 1 << 40, torch.float32)
        if "gemma" in name and "norm" in key:  # 1 was added and subtracted in float32
            torch.testing.assert_close(value, state[key], rtol=0, atol=1.2e-7)
        else:
            assert torch.equal(value, state[key]), key
    torch.testing.assert_close(kit.logits(model_of(found)), kit.logits(model), rtol=1e-4, atol=1e-4)
