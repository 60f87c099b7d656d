"""Operators of dfq on tensors: importing this package registers `torch.ops.dfq` and the best implementation.

Kernels know tensors and layouts, never models.
"""

from __future__ import annotations

from dfrot_kernels import cpu, cuda, native, ops, ops_fused, ops_kv, ops_tiled
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.which import report, which

if native.load():
    ops.register({**cpu.KERNELS, **ops_fused.KERNELS, **ops_kv.KERNELS, **ops_tiled.KERNELS}, "CPU")
cuda.register()

__all__ = ["PackedWeight", "PreparedWeight", "ops", "report", "which"]
