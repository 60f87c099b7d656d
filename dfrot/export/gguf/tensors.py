"""The tensors of a GGUF file: which there are, under which names and types, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfrot.arch.gguf import GGUF_ARCHS
from dfrot.errors import UnsupportedError
from dfrot.export.gguf.blocks import pack_blocks
from dfrot.export.source import ExportSource

DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F32"}
WRITTEN_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class GGUFPlan:
    """One tensor to write."""

    name: str
    """Its name in the file."""
    type: str
    """Its ggml type: BF16, F16, F32 or the name of a `Storage`."""
    shape: tuple[int, ...]
    """Its shape in bytes: rows, then bytes per row."""
    module: str = ""
    """Full name of our module it comes from; empty for the factors of the rotary embedding."""
    kind: str = "weight"
    """`weight` or `bias`."""
    heads: int = 0
    """Above 0: rows are interleaved head by head, see `interleave`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape))


def plan_tensors(source: ExportSource, dense_type: str) -> Iterator[GGUFPlan]:
    """Every tensor in llama.cpp's order: embedding, blocks, final norm, head. dense_type: of 16-bit matrices."""
    arch, spec = source.arch, source.arch.spec
    names = GGUF_ARCHS[spec.model_type]
    yield from _module_plans(source, spec.embed, names.embed, dense_type)
    for layer in range(arch.n_layers):
        for part, gguf_name in names.parts.items():
            heads = 0
            if part in names.interleaved:
                linear = next(linear for linear in spec.linears if linear.name == part)
                heads = arch.sizes[linear.rows] // arch.head_dim
            yield from _module_plans(source, arch.full(layer, part), f"blk.{layer}.{gguf_name}", dense_type, heads)
    yield from _module_plans(source, spec.final_norm.name, names.final_norm, dense_type)
    if not arch.tied:
        yield from _module_plans(source, spec.head.name, names.head, dense_type)


def _module_plans(source: ExportSource, module: str, name: str, dense_type: str, heads: int = 0) -> Iterator[GGUFPlan]:
    """Weight and bias of a module, where the checkpoint has them. Norms and biases are float32."""
    linear, storage = source.plans.get(module), source.storage_of(module)
    if linear is not None and storage is not None:
        shape: tuple[int, ...] = (linear.rows, linear.cols // storage.block * storage.block_bytes)
        yield GGUFPlan(f"{name}.weight", storage.name, shape, module, "weight", heads)
    elif f"{module}.weight" in source.checkpoint:
        shape = source.checkpoint.shape(f"{module}.weight")
        written = dense_type if len(shape) == 2 else "F32"
        itemsize = 4 if written == "F32" else 2
        yield GGUFPlan(f"{name}.weight", written, (*shape[:-1], shape[-1] * itemsize), module, "weight", heads)
    if f"{module}.bias" in source.checkpoint:
        shape = source.checkpoint.shape(f"{module}.bias")
        yield GGUFPlan(f"{name}.bias", "F32", (4 * shape[0],), module, "bias", heads)


def tensor_value(source: ExportSource, plan: GGUFPlan) -> Tensor:
    """The value of a planned weight or bias, of any dtype: its bytes are what is written.

    Raises UnsupportedError for values beyond float16."""
    if plan.kind == "weight" and plan.module in source.plans:
        storage = source.storage_of(plan.module)
        assert storage is not None
        value = pack_blocks(source.packed_weight(plan.module), storage, source.rounding, plan.module)
    else:
        name = f"{plan.module}.{plan.kind}"
        value = source.checkpoint.read(name).to(WRITTEN_DTYPES[plan.type])
        if value.dtype == torch.float16 and not bool(torch.isfinite(value).all()):
            raise UnsupportedError(f"tensor {name} exceeds float16; use `dtype=bf16`", field="dtype", tensor=name)
    return interleave(value, plan.heads) if plan.heads else value


def interleave(rows: Tensor, heads: int) -> Tensor:
    """rows [heads * d, ...]: in each head, row i and row i + d/2 (a pair of Hugging Face's RoPE) become neighbours."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).transpose(1, 2).reshape(shape)
