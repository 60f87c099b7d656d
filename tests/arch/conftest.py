"""Tiny random checkpoints of every architecture, written as plain folders."""

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
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not hidden / heads
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}

EXTRA: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "olmoe": {"head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True},
}

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(model_type, dtype=..., bias=(names of linears), **config) -> folder with random weights and gains."""

    def build(
        model_type: str, dtype: torch.dtype = torch.float64, bias: tuple[str, ...] = (), seed: int = 0, **changes: Any
    ) -> Path:
        config = {"model_type": model_type, **SIZES, **EXTRA.get(model_type, {}), **changes}
        arch = describe(config)
        shapes = {**arch.tensors(), **arch.biases()}
        shapes.update({f"{n}.bias": (arch.sizes[s.rows],) for _, s, n in arch.linears() if s.name in bias})
        folder = tmp_path / f"{model_type}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(seed)
        writer = SafetensorsWriter(folder, [TensorPlan(name, dtype, shape) for name, shape in shapes.items()])
        for name, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.5
            writer.write(name, (values * scale + (1.0 if "norm" in name else 0.0)).to(dtype))
        return folder

    return build
