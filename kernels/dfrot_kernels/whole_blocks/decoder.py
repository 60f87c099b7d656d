"""A stack of decoder blocks as one native call (dfq_decode of csrc/dfq_abi.h): its operands, its tables, the call.

Not an operator of torch.ops: it reads a model's weights and writes its cache through addresses, which a schema cannot
describe. The op-by-op path is its reference; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot_kernels import abi, bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.prompt_attention.native import prompt_attention
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.whole_blocks.tables import Held, need_library, table, transform

LINES = 16  # most positions (batch times rows) of a call
HEAD_DIM = 512  # widest head

_PLACES = ("q", "k", "v", "o", "gate", "up", "down")  # of the linears of a block

Store = tuple[Tensor, Tensor, Tensor | None]  # codes, scale, zero of a cache, as the kv ops take them


@dataclass(frozen=True)
class LinearOperand:
    """A linear and the quantization of its activations.

    weight: prepared, [N, K].
    bias: [N], or None.
    bits: of the activations; 16: not quantized.
    symmetric: whether activations have no zero point.
    clip: factor of the range of activations, 0 < clip <= 1.
    base: float32 [order, order] of the Hadamard transform that its input takes first, or None.
    block: values of one block of that transform.
    """

    weight: PreparedWeight
    bias: Tensor | None
    bits: int
    symmetric: bool
    clip: float
    base: Tensor | None = None
    block: int = 0


@dataclass(frozen=True)
class BlockOperand:
    """One block.

    input_norm: gain [hidden] of the norm before attention.
    mlp_norm: gain [hidden] of the norm before the MLP.
    q_norm: gain [head_dim] of the norm of each query head, or None.
    k_norm: gain [head_dim] of the norm of each key head, or None.
    linears: q, k, v, o, gate, up, down.
    k_shift: [kv_heads, head_dim], subtracted from keys behind R3 before they are quantized, or None.
    """

    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    linears: tuple[LinearOperand, ...]
    k_shift: Tensor | None = None


@dataclass(frozen=True)
class DecoderShape:
    """Sizes and constants of a stack of decoder blocks.

    dtype: of hidden states and sinks: float32, bfloat16 or float16.
    hidden: width of the residual stream.
    heads: query heads.
    kv_heads: key and value heads; heads is a multiple of it.
    head_dim: values of a head, even and at most HEAD_DIM.
    mlp: width between the MLP's projections.
    window: positions that a row sees, itself included; 0 = all.
    sinks: leading positions of the cache in full precision.
    eps: of the norms.
    scaling: of the attention scores.
    kv_bits: of stored keys and values.
    kv_symmetric: whether they have no zero point.
    kv_clip: factor of their range, 0 < clip <= 1.
    r3: base and block of the Hadamard transform that keys are stored in, or None.
    """

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

    def __init__(self, shape: DecoderShape, blocks: Sequence[BlockOperand], final_norm: Tensor) -> None:
        need_library("decoder")
        self.shape, self.layers = shape, len(blocks)
        self._held = Held("decoder")
        self._blocks = table([self._block(block) for block in blocks])
        model = {
            "blocks": self._blocks.data_ptr(), "final_norm": self._held.float32(final_norm),
            "dtype": DTYPE_CODES[shape.dtype], "layers": self.layers, "hidden": shape.hidden, "heads": shape.heads,
            "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "mlp": shape.mlp, "window": shape.window,
            "sinks": shape.sinks, "eps": float(shape.eps), "scaling": float(shape.scaling), "kv_bits": shape.kv_bits,
            "kv_symmetric": int(shape.kv_symmetric), "kv_clip": float(shape.kv_clip),
            **transform("r3_", *self._transform(*(shape.r3 or (None, 0)))),
        }  # fmt: skip
        self._table = table([abi.words("dfq_decoder", model)])

    def _transform(self, base: Tensor | None, block: int) -> tuple[int, int, int]:
        """Address of the transposed base, order and block of a Hadamard transform."""
        if base is None:
            return 0, 0, 0
        return self._held.float32(base.T.contiguous()), base.shape[0], block

    def _linear(self, linear: LinearOperand) -> list[int]:
        w, (n, k) = linear.weight, linear.weight.shape
        if linear.bits != 16 and not linear.symmetric and w.sums is None:
            raise ValueError("decoder: activations with zero points need the sums of the codes")
        fields = {
            "tiles": self._held.address(w.tiles), "scale": self._held.address(w.scale),
            "zero": self._held.address(w.zero), "sums": self._held.address(w.sums),
            "bias": self._held.float32(linear.bias), "n": n, "k": k, "group": w.group, "bits": linear.bits,
            "symmetric": int(linear.symmetric), "clip": float(linear.clip),
            **transform("", *self._transform(linear.base, linear.block)),
        }  # fmt: skip
        return abi.words("dfq_linear", fields)

    def _block(self, block: BlockOperand) -> list[int]:
        names = ("input_norm", "mlp_norm", "q_norm", "k_norm", "k_shift")
        floats = {name: self._held.float32(getattr(block, name)) for name in names}
        linears = {place: self._linear(linear) for place, linear in zip(_PLACES, block.linears)}
        return abi.words("dfq_block", {**floats, **linears})

    def caches(self, stores: Sequence[tuple[Store, Store]], sinks: Sequence[tuple[Tensor, Tensor]] | None) -> Tensor:
        """The table of a cache: keys and values of every layer, and their exact sinks where the shape has any. It holds
        addresses: make it anew when a buffer was replaced."""
        rows = []
        for layer, (keys, values) in enumerate(stores):
            exact = sinks[layer] if sinks is not None else (None, None)
            names = ("k_packed", "k_scale", "k_zero", "v_packed", "v_scale", "v_zero", "k_sink", "v_sink")
            parts = dict(zip(names, (*keys, *values, *exact)))
            rows.append(
                abi.words("dfq_cache", {n: 0 if part is None else part.data_ptr() for n, part in parts.items()})
            )
        return table(rows)

    def run(
        self, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, position: int, states: Tensor | None = None
    ) -> Tensor:
        """hidden [batch, rows, hidden] at `position` and on, batch * rows at most LINES; cos, sin float32
        [rows, head_dim] -> behind the final norm. Appends to the caches, which must have room. states: `empty_states`,
        which receives the output of every block."""
        batch, rows, width = hidden.shape
        if hidden.dtype != self.shape.dtype or width != self.shape.hidden or not 0 < batch * rows <= LINES:
            raise ValueError(
                f"decoder: hidden is {hidden.dtype} {tuple(hidden.shape)}; {self.shape} takes {LINES} lines"
            )
        if caches.shape[0] != self.layers:
            raise ValueError(f"decoder: {caches.shape[0]} caches for {self.layers} layers")
        hidden = hidden.contiguous()
        out = torch.empty_like(hidden)
        bindings.decode(
            model=self._table, caches=caches, hidden=hidden, cos=cos, sin=sin, batch=batch, rows=rows,
            position=position, out=out, states=states,
        )  # fmt: skip
        return out

    def empty_states(self, hidden: Tensor) -> Tensor:
        """[layers, batch, rows, hidden], for the outputs of all blocks of a call."""
        return hidden.new_empty((self.layers, *hidden.shape))

    def run_tree(
        self,
        hidden: Tensor,
        caches: Tensor,
        cos: Tensor,
        sin: Tensor,
        position: int,
        parents: Tensor,
        states: Tensor | None = None,
    ) -> Tensor:
        """hidden [1, rows, hidden] of a tree of tokens behind `position`, at most LINES of them; parents int64 [rows],
        -1 or a smaller number; cos, sin float32 [rows, head_dim] of each node's own position -> behind the final norm,
        every row as if its ancestors alone preceded it. Node i goes to position + i of the caches, which must have
        room. states: as in `run`."""
        batch, rows, width = hidden.shape
        if hidden.dtype != self.shape.dtype or width != self.shape.hidden or batch != 1 or not 0 < rows <= LINES:
            raise ValueError(
                f"decoder: a tree is {hidden.dtype} {tuple(hidden.shape)}; {self.shape} takes {LINES} nodes"
            )
        if caches.shape[0] != self.layers or parents.shape != (rows,):
            raise ValueError(f"decoder: {caches.shape[0]} caches, {self.layers} layers; {len(parents)} parents")
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        bindings.decode_tree(
            model=self._table, caches=caches, hidden=hidden.contiguous(), cos=cos, sin=sin, rows=rows,
            position=position, parents=parents, out=out, states=states,
        )  # fmt: skip
        return out

    def run_batch(self, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
        """hidden [n, hidden], at most LINES lines of as many sequences, line i at positions[i] (int64 [n], at least the
        shape's sinks) of its own cache; caches int64 [n, layers, words], one table of `caches` each, with room for the
        new position; cos, sin float32 [n, head_dim] -> behind the final norm [n, hidden], every line with the bits
        that `run` gives it alone."""
        lines, width = hidden.shape
        if hidden.dtype != self.shape.dtype or width != self.shape.hidden or not 0 < lines <= LINES:
            raise ValueError(
                f"decoder: a batch is {hidden.dtype} {tuple(hidden.shape)}; {self.shape} takes {LINES} lines"
            )
        if caches.shape[:2] != (lines, self.layers) or positions.shape != (lines,) or cos.shape[0] != lines:
            raise ValueError(f"decoder: caches {tuple(caches.shape)} for {lines} lines of {self.layers} layers")
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        bindings.decode_batch(
            model=self._table, caches=caches, hidden=hidden.contiguous(), cos=cos, sin=sin, positions=positions,
            lines=lines, out=out,
        )  # fmt: skip
        return out

    # --- prompts: attention comes between the two halves of a block ------------------------------------------------

    def before(
        self, layer: int, hidden: Tensor, caches: Tensor, cos: Tensor, sin: Tensor, position: int, rotate: bool
    ) -> Tensor:
        """hidden [batch, rows, hidden] of any length -> queries [batch, rows, heads, head_dim], placed by RoPE and, if
        `rotate`, rotated by R3; keys and values are appended to the cache of `layer`."""
        batch, rows, _ = hidden.shape
        query = torch.empty((batch, rows, self.shape.heads, self.shape.head_dim), dtype=hidden.dtype)
        bindings.prefill_before(
            model=self._table, layer=layer, caches=caches, hidden=hidden, cos=cos, sin=sin, batch=batch, rows=rows,
            position=position, rotate=int(rotate), query=query,
        )  # fmt: skip
        return query

    def attend(
        self, query: Tensor, keys: Store, values: Store, sinks: tuple[Tensor, Tensor] | None, length: int
    ) -> Tensor:
        """query [batch, rows, heads, head_dim], rotated by R3, at the last `rows` of `length` positions of a layer's
        cache -> [batch, rows, heads, head_dim], as `dfq::prompt_attention` computes it; sinks: [sinks, batch, kv_heads,
        head_dim] exact keys and values of the first positions."""
        shape, (k_sink, v_sink) = self.shape, sinks or (None, None)
        sizes = (length, shape.head_dim, shape.kv_bits)
        return prompt_attention(query, *keys, *values, *sizes, shape.scaling, shape.window, k_sink, v_sink)

    def after(self, layer: int, hidden: Tensor, mixed: Tensor) -> None:
        """mixed [batch, rows, heads, head_dim], what the attention made; hidden becomes the output of the block."""
        lines = hidden.shape[0] * hidden.shape[1]
        bindings.prefill_after(model=self._table, layer=layer, hidden=hidden, mixed=mixed.contiguous(), lines=lines)

    def finish(self, hidden: Tensor) -> None:
        """The norm behind the last block, in place."""
        bindings.prefill_norm(model=self._table, x=hidden, lines=hidden.shape[0] * hidden.shape[1])
