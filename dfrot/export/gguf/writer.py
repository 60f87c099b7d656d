"""A GGUF file for llama.cpp: one file with sizes, tokenizer and tensors, written through the package `gguf`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfrot.arch.gguf import GGUF_ARCHS, GGUFNames
from dfrot.errors import ResourceError, UnsupportedError
from dfrot.export.gguf import model as gguf_model
from dfrot.export.gguf import tokenizer as gguf_tokenizer
from dfrot.export.gguf.blocks import pack_blocks
from dfrot.export.source import ExportSource
from dfrot.files import require_free_space
from dfrot.stage_folder import Progress

FILE_NAME = "model.gguf"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F32"}


@dataclass(frozen=True)
class _Tensor:
    """One tensor to come: our module, what of it, its GGUF name and type, its shape in bytes."""

    module: str
    kind: str  # weight, bias or freqs
    name: str
    type: str
    shape: tuple[int, ...]
    heads: int = 0  # > 0: rows are reordered head by head

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))


def write(source: ExportSource, folder: Path, dtype: str | None, progress: Progress) -> None:
    """Write `model.gguf` into `folder`. dtype: of tensors that stay in 16 bits, None as the source; norms and biases
    are float32. Raises ResourceError without the package, UnsupportedError for what llama.cpp has no words for."""
    try:
        import gguf
    except ImportError:
        raise ResourceError("the package gguf is not installed: pip install 'dfq[gguf]'") from None
    if dtype is not None and dtype not in DTYPES:
        raise UnsupportedError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    arch, where = source.arch, source.checkpoint.path
    names = GGUF_ARCHS[arch.spec.model_type]
    vocabulary = gguf_tokenizer.read_vocabulary(where, arch.sizes["vocab"], arch.config)
    writer = gguf.GGUFWriter(folder / FILE_NAME, names.arch)
    gguf_model.write_sizes(writer, arch, where / "config.json")
    freqs = gguf_model.write_rope(writer, arch, where / "config.json")
    dense = TYPES[DTYPES[dtype] if dtype is not None else source.dtype]
    plan = list(_plan(source, names, dense))
    if freqs is not None:
        plan.insert(0, _Tensor("", "freqs", "rope_freqs.weight", "F32", (freqs.nbytes,)))
    require_free_space(folder.parent, sum(one.nbytes for one in plan))
    _about(writer, source, gguf.LlamaFileType, dense)
    _tokenizer(writer, vocabulary)
    for one in plan:
        kind = getattr(gguf.GGMLQuantizationType, one.type)
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.uint8), one.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, one in enumerate(plan):
        progress("export", number, len(plan))
        value = torch.from_numpy(freqs) if one.kind == "freqs" and freqs is not None else _value(source, one)
        writer.write_tensor_data(value.contiguous().view(torch.uint8).numpy().reshape(one.shape))
    writer.close()
    progress("export", len(plan), len(plan))


def _plan(source: ExportSource, names: GGUFNames, dense: str) -> Iterator[_Tensor]:
    """Every tensor in llama.cpp's order: embedding, blocks, final norm, head."""
    arch, spec = source.arch, source.arch.spec
    yield from _parts(source, spec.embed, names.embed, dense)
    for layer in range(arch.n_layers):
        for part, theirs in names.parts.items():
            heads = 0
            if part in names.interleaved:
                linear = next(one for one in spec.linears if one.name == part)
                heads = arch.sizes[linear.rows] // arch.head_dim
            yield from _parts(source, arch.full(layer, part), f"blk.{layer}.{theirs}", dense, heads)
    yield from _parts(source, spec.final_norm.name, names.final_norm, dense)
    if not arch.tied:
        yield from _parts(source, spec.head.name, names.head, dense)


def _parts(source: ExportSource, module: str, name: str, dense: str, heads: int = 0) -> Iterator[_Tensor]:
    """Weight and bias of a module, as far as the checkpoint has them."""
    plan, storage = source.plans.get(module), source.storage
    if plan is not None and storage is not None:
        shape: tuple[int, ...] = (plan.rows, plan.cols // storage.block * storage.block_bytes)
        yield _Tensor(module, "weight", f"{name}.weight", storage.name, shape, heads)
    elif f"{module}.weight" in source.checkpoint:
        shape = source.checkpoint.shape(f"{module}.weight")
        kind = dense if len(shape) == 2 else "F32"
        size = 4 if kind == "F32" else 2
        yield _Tensor(module, "weight", f"{name}.weight", kind, (*shape[:-1], shape[-1] * size), heads)
    if f"{module}.bias" in source.checkpoint:
        shape = source.checkpoint.shape(f"{module}.bias")
        yield _Tensor(module, "bias", f"{name}.bias", "F32", (4 * shape[0],), heads)


def _value(source: ExportSource, one: _Tensor) -> Tensor:
    """The bytes of a tensor, as any dtype."""
    if one.kind == "weight" and one.module in source.plans:
        assert source.storage is not None
        value = pack_blocks(source.weight(one.module), source.storage, source.rounding, one.module)
    else:
        stored = source.checkpoint.read(f"{one.module}.{one.kind}")
        value = stored.to(next(dtype for dtype, name in TYPES.items() if name == one.type))
        if value.dtype == torch.float16 and not bool(torch.isfinite(value).all()):
            raise UnsupportedError(f"tensor {one.module}.{one.kind} exceeds float16; use --dtype bf16")
    return interleave(value, one.heads) if one.heads else value


def interleave(rows: Tensor, heads: int) -> Tensor:
    """rows [heads * d, ...]: in each head, row i and row i + d/2 (a pair of Hugging Face's RoPE) become neighbours."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).transpose(1, 2).reshape(shape)


def _about(writer: Any, source: ExportSource, types: Any, dense: str) -> None:
    storage = source.storage.name if source.storage is not None else dense
    writer.add_file_type(getattr(types, "ALL_F32" if storage == "F32" else f"MOSTLY_{storage}"))
    writer.add_quantization_version(2)
    writer.add_string("dfq.scheme", source.scheme.name)
    writer.add_string("dfq.source_digest", source.checkpoint.digest())


def _tokenizer(writer: Any, vocabulary: gguf_tokenizer.Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    for role, index in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
