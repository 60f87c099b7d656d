"""A whole stack of decoder blocks as one native call (csrc/dfq_decoder.h): its operands, its tables, the call.

Not an operator of torch.ops: it reads a model's weights and writes its cache through addresses, which a schema cannot
describe. The op-by-op path is its reference; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot_kernels import native
from dfrot_kernels.cpu import DTYPE_CODES
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.tables import Held, check_words, word

LINES = 16  # most positions (batch times rows) of a call
HEAD_DIM = 512  # widest head

_LINEAR, _BLOCK, _CACHE, _DECODER = 14, 4 + 7 * 14, 8, 19  # words of the structs in dfq_decoder.h

Store = tuple[Tensor, Tensor, Tensor | None]  # codes, scale, zero of a cache, as the kv ops take them


@dataclass(frozen=True)
class LinearOperand:
    """A linear: prepared weight, bias [N] or None, bits of its activations (16: not quantized) and their range, and the
    Hadamard transform of its input (base [order, order] float32, in blocks of `block`), if any."""

    weight: PreparedWeight
    bias: Tensor | None
    bits: int
    symmetric: bool
    clip: float
    base: Tensor | None = None
    block: int = 0


@dataclass(frozen=True)
class BlockOperand:
    """One block. Norm gains [hidden] (q_norm, k_norm [head_dim] or None); linears by their place."""

    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    linears: tuple[LinearOperand, ...]  # q, k, v, o, gate, up, down


@dataclass(frozen=True)
class Shape:
    """Sizes and constants. window: positions that a row sees, 0 = all; sinks: leading positions of the cache in full
    precision; r3: base and block of the transform that keys are stored in, or None."""

    dtype: torch.dtype
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    window: int
    sinks: int
    eps: float
    scaling: float
    kv_bits: int
    kv_symmetric: bool
    kv_clip: float
    r3: tuple[Tensor, int] | None


class Decoder:
    """The tables of one model, and the tensors they point to. Raises RuntimeError without the native library."""

    def __init__(self, shape: Shape, blocks: Sequence[BlockOperand], final_norm: Tensor) -> None:
        check_words("dfq_decoder_words", (_LINEAR, _BLOCK, _CACHE, _DECODER))
        self.shape, self.layers = shape, len(blocks)
        self._held = Held("decoder")
        self._blocks = torch.tensor([self._block(block) for block in blocks], dtype=torch.int64)
        base_t, order, turn = self._turn(*(shape.r3 or (None, 0)))
        words = [self._blocks.data_ptr(), self._held.float32(final_norm), DTYPE_CODES[shape.dtype], self.layers]
        words += [shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.mlp, shape.window, shape.sinks]
        words += [word(shape.eps), word(shape.scaling), shape.kv_bits, int(shape.kv_symmetric), word(shape.kv_clip)]
        words += [base_t, order, turn]
        self._table = torch.tensor(words, dtype=torch.int64)

    def _turn(self, base: Tensor | None, block: int) -> tuple[int, int, int]:
        """Transposed base, order and block of a Hadamard transform."""
        if base is None:
            return 0, 0, 0
        return self._held.float32(base.T.contiguous()), base.shape[0], block

    def _linear(self, linear: LinearOperand) -> list[int]:
        w = linear.weight
        if linear.bits != 16 and not linear.symmetric and w.sums is None:
            raise ValueError("decoder: activations with zero points need the sums of the codes")
        words = [self._held.address(part) for part in (w.tiles, w.scale, w.zero, w.sums)]
        words += [self._held.float32(linear.bias), *w.shape, w.group, linear.bits, int(linear.symmetric)]
        return [*words, word(linear.clip), *self._turn(linear.base, linear.block)]

    def _block(self, block: BlockOperand) -> list[int]:
        words = [self._held.float32(gain) for gain in (block.input_norm, block.mlp_norm, block.q_norm, block.k_norm)]
        for linear in block.linears:
            words += self._linear(linear)
        return words

    def caches(self, stores: Sequence[tuple[Store, Store]], sinks: Sequence[tuple[Tensor, Tensor]] | None) -> Tensor:
        """The table of a cache: keys and values of every layer, and their exact sinks where the shape has any. It holds
        addresses: make it anew when a buffer was replaced."""
        rows = []
        for layer, (keys, values) in enumerate(stores):
            exact = sinks[layer] if sinks is not None else (None, None)
            rows.append([0 if part is None else part.data_ptr() for part in (*keys, *values, *exact)])
        return torch.tensor(rows, dtype=torch.int64)

    def run(self, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, position: int) -> Tensor:
        """hidden [batch, rows, hidden] at `position` and on, batch * rows at most LINES; cos, sin float32
        [rows, head_dim] -> behind the final norm. Appends to the caches, which must have room."""
        batch, rows, width = hidden.shape
        if hidden.dtype != self.shape.dtype or width != self.shape.hidden or not 0 < batch * rows <= LINES:
            raise ValueError(
                f"decoder: hidden is {hidden.dtype} {tuple(hidden.shape)}; {self.shape} takes {LINES} lines"
            )
        if caches.shape[0] != self.layers:
            raise ValueError(f"decoder: {caches.shape[0]} caches for {self.layers} layers")
        hidden = hidden.contiguous()
        out = torch.empty_like(hidden)
        native.call("dfq_decode", self._table, caches, hidden, cos, sin, batch, rows, position, out)
        return out

    def run_tree(
        self, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, position: int, parents: Tensor
    ) -> Tensor:
        """hidden [1, rows, hidden] of a tree of tokens behind `position`, at most LINES of them; parents int64 [rows],
        -1 or a smaller number; cos, sin float32 [rows, head_dim] of each node's own position -> behind the final norm,
        every row as if its ancestors alone preceded it. Node i goes to position + i of the caches, which must have
        room."""
        batch, rows, width = hidden.shape
        if hidden.dtype != self.shape.dtype or width != self.shape.hidden or batch != 1 or not 0 < rows <= LINES:
            raise ValueError(
                f"decoder: a tree is {hidden.dtype} {tuple(hidden.shape)}; {self.shape} takes {LINES} nodes"
            )
        if caches.shape[0] != self.layers or parents.shape != (rows,):
            raise ValueError(f"decoder: {caches.shape[0]} caches, {self.layers} layers; {len(parents)} parents")
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        where = (rows, position, parents)
        native.call("dfq_decode_tree", self._table, caches, hidden.contiguous(), cos, sin, *where, out)
        return out

    # --- prompts: the caller computes the attention between the two halves of a block ------------------------------

    def before(
        self, layer: int, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, position: int, rotate: bool
    ) -> Tensor:
        """hidden [batch, rows, hidden] of any length -> queries [batch, rows, heads, head_dim], placed by RoPE and, if
        `rotate`, rotated by R3; keys and values are appended to the cache of `layer`."""
        batch, rows, _ = hidden.shape
        query = torch.empty((batch, rows, self.shape.heads, self.shape.head_dim), dtype=hidden.dtype)
        where = (batch, rows, position, int(rotate))
        native.call("dfq_prefill_before", self._table, layer, caches, hidden, cos, sin, *where, query)
        return query

    def after(self, layer: int, hidden: Tensor, mixed: Tensor) -> None:
        """mixed [batch, rows, heads, head_dim], what the attention made; hidden becomes the output of the block."""
        lines = hidden.shape[0] * hidden.shape[1]
        native.call("dfq_prefill_after", self._table, layer, hidden, mixed.contiguous(), lines)

    def finish(self, hidden: Tensor) -> None:
        """The norm behind the last block, in place."""
        native.call("dfq_prefill_norm", self._table, hidden, hidden.shape[0] * hidden.shape[1])
