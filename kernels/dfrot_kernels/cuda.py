"""The "CUDA" dispatch key: Triton kernels, imported at the first call with a CUDA tensor and never without one.

Without Triton, or with DFQ_IMPL=reference, nothing is registered and the plain-torch references serve CUDA tensors.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import native, ops
from dfrot_kernels.ops import registry

PACKAGE = "triton"
# What has a Triton kernel: of the descriptions of the ops, so that registering needs no import of Triton.
OPS = tuple(op.name for op in ops.OPS.values() if op.triton)


def status() -> tuple[bool, str]:
    """Whether Triton kernels serve CUDA tensors, and why."""
    if native.status().startswith("DFQ_IMPL=reference"):
        return False, native.status()
    if importlib.util.find_spec(PACKAGE) is None:
        return False, "triton is not installed (pip install 'dfq[gpu]'): plain torch"
    return True, f"Triton {importlib.metadata.version(PACKAGE)}, compiled at the first call"


@functools.cache
def kernels() -> dict[str, Callable[..., Any]]:
    """Op name -> function on checked arguments. Imports Triton."""
    return {name: ops.OPS[name].triton_function() for name in OPS}


def _lazy(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.index == torch.cuda.current_device():
            return kernels()[name](*args)
        with torch.cuda.device(device):  # Triton launches on the current device
            return kernels()[name](*args)

    return call


def register() -> None:
    """Let the Triton kernels serve the "CUDA" key, where they can."""
    if status()[0]:
        for name in OPS:
            registry.serve(ops.OPS[name], _lazy(name), "CUDA")
