"""A GGUF file for llama.cpp: one file with sizes, tokenizer and tensors, written through the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfrot.arch.gguf import GGUF_ARCHS
from dfrot.dtypes import SHORT_DTYPES
from dfrot.errors import UnsupportedError
from dfrot.export.gguf import model as gguf_model
from dfrot.export.gguf import tokenizer as gguf_tokenizer
from dfrot.export.gguf.tensors import DTYPE_NAMES, GGUFPlan, plan_tensors, tensor_value
from dfrot.export.source import ExportSource
from dfrot.files import require_free_space
from dfrot.inputs.gguf.package import gguf_package
from dfrot.progress import Progress

FILE_NAME = "model.gguf"


class GGUFFile:
    """Writes `model.gguf`. A `formats.Writer`."""

    def write(self, source: ExportSource, folder: Path, dtype: str | None, progress: Progress) -> None:
        """Write `source` into `folder`. dtype: of matrices that stay in 16 bits (bf16, f16, f32; None: as the source);
        norms and biases are float32.

        Raises ResourceError without the package gguf, UnsupportedError for what GGUF cannot describe."""
        gguf = gguf_package()
        if dtype is not None and dtype not in SHORT_DTYPES:
            raise UnsupportedError(f"`dtype={dtype}`: use one of {', '.join(SHORT_DTYPES)}", field="dtype")
        arch, checkpoint = source.arch, source.checkpoint.path
        vocabulary = gguf_tokenizer.read_vocabulary(checkpoint, arch.sizes["vocab"], arch.config)
        writer = gguf.GGUFWriter(folder / FILE_NAME, GGUF_ARCHS[arch.spec.model_type].arch)
        gguf_model.write_sizes(writer, arch, checkpoint / "config.json")
        freqs = gguf_model.write_rope(writer, arch, checkpoint / "config.json")
        dense_type = DTYPE_NAMES[SHORT_DTYPES[dtype] if dtype is not None else source.dtype]
        plans = list(plan_tensors(source, dense_type))
        if freqs is not None:
            plans.insert(0, GGUFPlan("rope_freqs.weight", "F32", (freqs.nbytes,)))
        require_free_space(folder.parent, sum(plan.nbytes for plan in plans))
        _write_origin(writer, source, gguf.LlamaFileType, dense_type)
        gguf_tokenizer.write_vocabulary(writer, vocabulary)
        for plan in plans:
            ggml_type = getattr(gguf.GGMLQuantizationType, plan.type)
            writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.uint8), plan.nbytes, raw_dtype=ggml_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, plan in enumerate(plans):
            progress("export", number, len(plans))
            value = torch.from_numpy(freqs) if freqs is not None and number == 0 else tensor_value(source, plan)
            writer.write_tensor_data(value.contiguous().view(torch.uint8).numpy().reshape(plan.shape))
        writer.close()
        progress("export", len(plans), len(plans))


def _write_origin(writer: Any, source: ExportSource, file_types: Any, dense_type: str) -> None:
    """File type, and the scheme and digest of the source."""
    storage = source.storage.name if source.storage is not None else dense_type
    writer.add_file_type(getattr(file_types, "ALL_F32" if storage == "F32" else f"MOSTLY_{storage}"))
    writer.add_quantization_version(2)
    writer.add_string("dfq.scheme", source.scheme.name)
    writer.add_string("dfq.source_digest", source.checkpoint.digest())
