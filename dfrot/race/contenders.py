"""The engines that race, and how each makes its own 4-bit model from a 16-bit folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfrot.race.prepare import Workshop, gguf, onnxruntime_folder, openvino_folder

Prepare = Callable[[Workshop], Path]
"""Makes the model of a variant where it is missing; returns its path."""


def _source(shop: Workshop) -> Path:
    return shop.source


@dataclass(frozen=True)
class EngineModel:
    """One model of an engine."""

    name: str
    """What the table calls it, behind the engine."""
    prepare: Prepare
    """Makes it."""
    bits: dict[str, Any]
    """Bits of `weights`, `activations`, `kv`, `head`, `embedding`, as far as the file does not say them."""


@dataclass(frozen=True)
class PeerEngine:
    """An engine beside dfq."""

    driver: str
    """Its file in drivers/, without the suffix."""
    variants: tuple[EngineModel, ...]
    """Its models."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of its process's environment."""
    own: bool = True
    """Whether it has an environment of its own; else it runs in dfq's."""


_BITS_16 = {"weights": 16, "activations": 16, "kv": 16, "head": 16, "embedding": 16}
_Q8_BLOCKS = {"activations": 8, "kv": 16}
ENGINES: dict[str, PeerEngine] = {
    "torch": PeerEngine("torch_engine", (EngineModel("bf16", _source, _BITS_16),), own=False),
    "llama.cpp": PeerEngine(
        "llama_cpp_engine",
        (
            EngineModel("Q4_0", lambda shop: gguf(shop, "Q4_0"), _Q8_BLOCKS),
            EngineModel("Q4_K_M", lambda shop: gguf(shop, "Q4_K_M"), _Q8_BLOCKS),
        ),
    ),
    "ik_llama.cpp": PeerEngine(
        "ik_llama_cpp_engine",
        (
            EngineModel("Q4_0", lambda shop: gguf(shop, "Q4_0"), _Q8_BLOCKS),
            EngineModel("Q4_K_M", lambda shop: gguf(shop, "Q4_K_M"), _Q8_BLOCKS),
        ),
    ),
    "openvino": PeerEngine(
        "openvino_engine",
        (
            EngineModel(
                "int4-g64",
                openvino_folder,
                {"weights": 4.25, "activations": 8, "kv": 8, "head": 8, "embedding": 8},
            ),
        ),
    ),
    "onnxruntime": PeerEngine(
        "onnxruntime_engine",
        (
            EngineModel(
                "int4-g32",
                onnxruntime_folder,
                {"weights": 5, "activations": 8, "kv": 32, "head": 5, "embedding": 5},
            ),
        ),
    ),
    "vllm": PeerEngine(
        "vllm_engine",
        (EngineModel("bf16", _source, _BITS_16),),
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
            "VLLM_NO_USAGE_STATS": "1",
        },
    ),
}
