"""A loaded model can be copied, saved whole with torch and sent to another process; it answers the same there."""

from __future__ import annotations

import copy
import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.bench.models.random_model import dfq_config
from dfrot.files import read_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.resets import Reset
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of a prompt and of one token behind it."""
    out = model(ids[:, :-1], use_cache=True)
    step = model(ids[:, -1:], past_key_values=out.past_key_values, use_cache=True)
    return torch.cat([out.logits, step.logits], 1).float()


def answer(model: Any, ids: list[list[int]], queue: Any) -> None:
    """What a worker does."""
    queue.put((logits(model, torch.tensor(ids)).tolist(), model.dfq_native.report()["steps"]))


def saved_and_loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize(
    ("model_type", "scheme", "sinks"),
    [
        ("llama", "w4a8kv4", 0),
        ("llama", "w4a4kv4-wasym", 2),
        ("llama", "w4a16kv16", 0),
        ("qwen3_moe", "w4a4kv4", 2),
        ("gemma2", "w3a8kv4", 0),
    ],
)
def test_copies_answer_the_same(
    kit: SimpleNamespace, tmp_path: Path, ids: Tensor, way: Any, model_type: str, scheme: str, sinks: int
) -> None:
    source = kit.build(tmp_path / "source", model_type)
    config = dfq_config(describe(read_json(source / "config.json")), QuantScheme.parse(scheme))
    resets = (Reset("model.layers.0", 3, 1.0, 0.5),) if sinks else ()
    config = DfqConfig(config.scheme, config.online, sink_tokens=sinks, resets=resets)
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    expected, report = logits(model, ids), model.dfq_native.report()
    twin = way(model)
    assert twin.dfq_native is twin.base_model.dfq_native
    assert twin.dfq_native.sinks is twin.dfq_runtime.sinks, "the copy's own"
    assert twin.dfq_runtime.sinks is not model.dfq_runtime.sinks
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(twin, ids), expected)
    assert twin.dfq_native.report() == report


def test_a_spawned_worker_gets_the_model(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source", "llama")
    config = dfq_config(describe(read_json(source / "config.json")), QuantScheme.parse("w4a4kv4"))
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=answer, args=(model, ids.tolist(), queue))
    worker.start()
    result, steps = queue.get(timeout=120)
    worker.join(60)
    assert worker.exitcode == 0
    assert torch.equal(torch.tensor(result), logits(model, ids))
    assert steps == model.dfq_native.report()["steps"]
