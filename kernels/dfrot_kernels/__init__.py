"""Operators of dfq on tensors: importing this package registers `torch.ops.dfq` and the best implementation.

Kernels know tensors and layouts, never models.
"""

from __future__ import annotations

from dfrot_kernels import native, ops
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.which import report, which

native.register(ops.library)

__all__ = ["PackedWeight", "ops", "report", "which"]
