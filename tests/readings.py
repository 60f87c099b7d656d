"""One folder read twice: by dfq, block by block, and by transformers; and folders with something changed.

Loaded by the fixture `readings` of tests/conftest.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfrot.arch import describe, open_described
from dfrot.compat.logs import quiet_transformers
from dfrot.runtime.block_runner import BlockRunner

TOKENS = torch.tensor([[0, 3, 17, 5, 30, 2, 9, 11]])


def dfq_logits(folder: Path, tokens: Tensor = TOKENS) -> Tensor:
    """Logits float32 of the model that dfq reads from a 16-bit folder."""
    runner = BlockRunner(*open_described(folder))
    hidden = runner.embed(tokens)
    for layer in range(runner.arch.n_layers):
        hidden = runner.run(runner.block(layer), hidden)
    return runner.logits(hidden)


def transformers_logits(folder: Path, tokens: Tensor = TOKENS) -> Tensor:
    """Logits float32 of the model that transformers loads from a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    capped = describe(config.to_dict()).spec.scalars.attention_cap
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **({"attn_implementation": "eager"} if capped else {})
        )
        with torch.no_grad():
            return model.eval()(tokens).logits  # type: ignore[no-any-return]


def difference(first: Tensor, second: Tensor) -> float:
    """Relative distance of two logits; infinity where shapes differ or a value is no number."""
    if first.shape != second.shape:
        return float("inf")
    distance = float((first - second).norm() / second.norm().clamp_min(1e-30))
    return distance if distance == distance else float("inf")


def changed(
    source: Path,
    out: Path,
    tensors: Callable[[dict[str, Tensor]], Any] = lambda tensors: None,
    config: Callable[[dict[str, Any]], Any] = lambda config: None,
) -> Path:
    """A copy of a folder with one weight file, after `tensors` and `config` changed both in place."""
    shutil.copytree(source, out)
    weights, values = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    tensors(weights)
    config(values)
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(values))
    return out
