"""dfq: take an LLM checkpoint to 4 bits (weights, activations, KV cache) with refined rotations.

After `import dfrot`, `transformers.AutoModelForCausalLM.from_pretrained` loads dfq checkpoints. The import itself
loads neither transformers nor torch and touches no device: the names below resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dfrot.compat.import_hook import PEFT_LORA, QUANTIZER_TABLES, import_after

_PUBLIC = {
    "ArchSpec": "dfrot.arch",
    "Checkpoint": "dfrot.checkpoint",
    "DfqConfig": "dfrot.quant.config",
    "DfqError": "dfrot.errors",
    "PackedWeight": "dfrot_kernels.layouts",
    "QuantScheme": "dfrot.quant.scheme",
    "Rotation": "dfrot.rotation.rotation",
    "load": "dfrot.runtime.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("dfq")
        except PackageNotFoundError:  # a source tree on the path, never installed
            return "0+source"
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dfrot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, "__version__"])


import_after(QUANTIZER_TABLES, "dfrot.runtime.quantizer_plugin")
import_after(PEFT_LORA, "dfrot.runtime.lora")
