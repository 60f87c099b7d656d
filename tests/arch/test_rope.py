"""RoPE is read from config.json as transformers reads it, whichever of its two entries describes it."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.arch.rope import rope_parameters

NEW = {"rope_type": "default", "rope_theta": 5e4}
LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"rope_theta": 2e4},
        {"rope_parameters": NEW, "rope_theta": 2e4},
        {"rope_scaling": LINEAR, "rope_theta": 2e4},
        {"rope_scaling": LINEAR, "rope_parameters": NEW},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {**NEW, **LINEAR}, "rope_theta": 2e4},
        {"rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 3e4}},
        {"rope_scaling": LLAMA3, "max_position_embeddings": 64},
    ],
    ids=str,
)
def test_as_transformers_reads_it(entries: dict[str, Any]) -> None:
    from transformers import LlamaConfig

    copies = {key: dict(value) if isinstance(value, dict) else value for key, value in entries.items()}
    expected = LlamaConfig(**copies).rope_parameters
    ours = rope_parameters(entries)
    assert {**ours, "type": None} == {**expected, "type": None}
