"""Operators of dfq on tensors: importing this package registers `torch.ops.dfq` and the best implementation.

Kernels know tensors and layouts, never models. The one exception is whole_blocks/ (here and in csrc/cpu/): calls that
run a stack of decoder blocks, or a pass of a draft, from tables of sizes and addresses. They exist because a call per
operator costs more than the arithmetic of one token. They name no model's files, and no kernel uses them.
"""

from __future__ import annotations

from dfrot_kernels import cuda, native, ops
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.ops import registry
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.which import report, which

if native.load():
    for op in ops.OPS.values():
        registry.serve(op, op.native, "CPU")
cuda.register()

__all__ = ["PackedWeight", "PreparedWeight", "ops", "report", "which"]
