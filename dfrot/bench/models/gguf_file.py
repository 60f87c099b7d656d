"""A GGUF file of a given shape with random Q4_0 weights, for timing llama.cpp.

Q4_0 stores 32 codes with one float16 scale: 4.5 bits per weight. Every matrix is Q4_0, embedding and head too
(llama.cpp calls this a pure quantization): the same 4 bits as ours everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dfrot.arch import BoundArch
from dfrot.errors import UnsupportedError
from dfrot.inputs.gguf.package import gguf_package

BLOCK, BLOCK_BYTES = 32, 18  # columns and bytes of a Q4_0 block
_ATTENTION = (("attn_q", "q"), ("attn_k", "kv"), ("attn_v", "kv"))


def tensor_shapes(arch: BoundArch) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that llama.cpp expects of a Llama with the sizes of `arch`."""
    sizes = arch.sizes
    hidden, mlp = sizes["hidden"], sizes["intermediate"]
    yield "token_embd.weight", (sizes["vocab"], hidden)
    for layer in range(arch.n_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        for name, rows in _ATTENTION:
            yield f"{block}.{name}.weight", (sizes[rows], hidden)
        yield f"{block}.attn_output.weight", (hidden, sizes["q"])
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (mlp, hidden)
        yield f"{block}.ffn_up.weight", (mlp, hidden)
        yield f"{block}.ffn_down.weight", (hidden, mlp)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (sizes["vocab"], hidden)


def write_random_gguf(path: Path, arch: BoundArch, seed: int = 0) -> Path:
    """Write the GGUF file `path` for the sizes of `arch`, one tensor in memory at a time; returns `path`.

    Raises ResourceError without the package gguf, UnsupportedError for widths that are not whole blocks."""
    gguf = gguf_package()
    if any(shape[-1] % BLOCK for name, shape in tensor_shapes(arch)):
        raise UnsupportedError(f"Q4_0 needs widths that are multiples of {BLOCK}; this model has others")
    writer = gguf.GGUFWriter(path, "llama")
    _write_sizes(writer, arch)
    for name, shape in tensor_shapes(arch):
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            continue
        stored = (*shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES)
        nbytes = int(np.prod(stored))
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), nbytes, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(seed)
    for _, shape in tensor_shapes(arch):
        writer.write_tensor_data(_random_values(shape, generator))
    writer.close()
    return path


def _write_sizes(writer: Any, arch: BoundArch) -> None:
    """Add the metadata of a Llama."""
    config = arch.config
    writer.add_context_length(int(config.get("max_position_embeddings", 2048)))
    writer.add_embedding_length(arch.hidden)
    writer.add_block_count(arch.n_layers)
    writer.add_feed_forward_length(arch.intermediate)
    writer.add_head_count(arch.n_heads)
    writer.add_head_count_kv(arch.n_kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-5)))
    writer.add_vocab_size(arch.sizes["vocab"])
    writer.add_tokenizer_model("no_vocab")  # the bench feeds token ids


def _random_values(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Ones for a norm; random Q4_0 blocks of unit output scale for a matrix, as bytes."""
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    blocks = generator.integers(0, 256, (*shape[:-1], shape[-1] // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    deviation = 15 / 12**0.5  # of uniform codes
    blocks[..., :2] = np.frombuffer(np.float16(shape[-1] ** -0.5 / deviation).tobytes(), dtype=np.uint8)
    return blocks.reshape(*shape[:-1], -1)
