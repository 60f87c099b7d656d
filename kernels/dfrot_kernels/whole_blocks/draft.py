"""One pass of a draft as one native call (dfq_draft_pass of csrc/dfq_abi.h): its operands, its tables, the call.

The modules of the draft are its reference; tests compare the two. Arithmetic is float32 whatever the weights are
stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot_kernels import abi, bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.whole_blocks.tables import Held, empty, need_library, table

LINES = 16  # most rows of a call
HEAD_DIM = 512  # widest head
DTYPES = (torch.float32, torch.bfloat16)  # of inputs, outputs, buffers and dense weights

_PLACES = ("q", "k", "v", "o", "gate", "up", "down")  # of the linears of a block

Weight = Tensor | PackedWeight | PreparedWeight


def servable(weight: Weight) -> bool:
    """Dense [N, K] of DTYPES on the CPU, 8-bit codes with a symmetric scale per row, or tiles of 4-bit codes."""
    if isinstance(weight, PreparedWeight):
        return True
    if isinstance(weight, PackedWeight):
        return weight.bits == 8 and not weight.group and weight.zero is None and weight.packed.device.type == "cpu"
    return weight.dtype in DTYPES and weight.device.type == "cpu" and weight.is_contiguous()


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times a dense weight [N, K]^T, both of one of DTYPES -> [..., N] of that dtype. For a few rows, each
    of which has the bits that it has alone; needs the native library."""
    if x.dtype != weight.dtype or x.shape[-1] != weight.shape[1] or not servable(weight):
        raise ValueError(f"dense: x {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}")
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    if out.numel():
        n, k = weight.shape
        kind = DTYPE_CODES[x.dtype]
        bindings.dense(
            x=x, dtype=kind, m=x[..., 0].numel(), n=n, k=k, weight=weight, kind=kind, scale=None, group=0, out=out
        )
    return out


@dataclass(frozen=True)
class DraftBlock:
    """One block.

    input_norm: gain [hidden] of the norm before attention, of any dtype.
    mlp_norm: gain [hidden] of the norm before the MLP.
    weights: q, k, v, o, gate, up, down; the first four None in a block without attention.
    biases: [N] of any dtype, of the seven linears in the same order, None for one without; empty: none has one.
    cross: keys and values come from features of the target.
    gates: factors of what attention and the MLP add.
    q_norm: gain [head_dim] of the norm of each query head, or None.
    k_norm: gain [head_dim] of the norm of each key head, or None.
    slopes: [heads], how much a cross-attention score loses per position of distance, or None.
    side_norm: gain [hidden]: q, k, v of a self block read [norm(x), norm(h)] side by side, x the inputs of the call,
        h the residual stream; None: they read norm(h).
    feature_norm: gain [hidden] of a norm on new features before they become keys, or None.
    joins: the residual stream gets the call's `stream` added before this block.
    """

    input_norm: Tensor
    mlp_norm: Tensor
    weights: tuple[Weight | None, ...]
    cross: bool = False
    gates: tuple[float, float] = (1.0, 1.0)
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    slopes: Tensor | None = None
    side_norm: Tensor | None = None
    feature_norm: Tensor | None = None
    joins: bool = False
    biases: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class DraftShape:
    """Sizes and constants of a draft.

    dtype: of inputs, outputs and buffers: float32 or bfloat16.
    hidden: width of the residual stream.
    heads: query heads.
    kv_heads: key and value heads; heads is a multiple of it.
    head_dim: values of a head, even and at most HEAD_DIM.
    mlp: width between the MLP's projections.
    eps: of the norms.
    """

    dtype: torch.dtype
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    eps: float


@dataclass(frozen=True)
class Slots:
    """What new slots see (dfq_draft_pass of csrc/dfq_abi.h).

    positions: int64 [rows], of the slots.
    at: buffer row of the first slot in self-attention blocks.
    verified: buffer rows below it are visible to every slot.
    tree: bool [rows, at + rows - verified], which of the rows from `verified` on a slot sees; None: all.
    cross_at: buffer row of the first new feature in cross-attention blocks.
    features: positions of the target whose features are in the buffers.
    drafted: drafted features behind them.
    places: int64 [drafted], positions of the drafted features, or None.
    cross_tree: bool [rows, drafted], which drafted features a slot sees; None: all.
    """

    positions: Tensor
    at: int
    verified: int
    tree: Tensor | None
    cross_at: int
    features: int
    drafted: int
    places: Tensor | None
    cross_tree: Tensor | None


class DraftPass:
    """The tables of one draft, and the tensors they point to. Raises RuntimeError without the native library."""

    def __init__(self, shape: DraftShape, blocks: Sequence[DraftBlock], final_norm: Tensor | None) -> None:
        """final_norm: gain [hidden]; None: outputs are not normed."""
        need_library("draft")
        self.shape, self.layers = shape, len(blocks)
        self._held = Held("draft")
        self._blocks = table([self._block(block) for block in blocks])
        draft = {
            "blocks": self._blocks.data_ptr(), "final_norm": self._held.float32(final_norm),
            "dtype": DTYPE_CODES[shape.dtype], "layers": self.layers, "hidden": shape.hidden, "heads": shape.heads,
            "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "mlp": shape.mlp, "eps": float(shape.eps),
        }  # fmt: skip
        self._table = table([abi.words("dfq_draft", draft)])

    def _block(self, block: DraftBlock) -> list[int]:
        names = ("input_norm", "side_norm", "mlp_norm", "q_norm", "k_norm", "slopes", "feature_norm")
        gains = {name: self._held.float32(getattr(block, name)) for name in names}
        attention_gate, mlp_gate = map(float, block.gates)
        biases = block.biases or (None,) * len(_PLACES)
        linears = {place: self._linear(w, b) for place, w, b in zip(_PLACES, block.weights, biases, strict=True)}
        constants = {"attention_gate": attention_gate, "mlp_gate": mlp_gate, "cross": int(block.cross)}
        constants["joins"] = int(block.joins)
        return abi.words("dfq_draft_block", {**gains, **constants, **linears})

    def _linear(self, weight: Weight | None, bias: Tensor | None) -> list[int]:
        if weight is None:
            return empty("dfq_draft_linear")
        if not servable(weight):
            raise ValueError("draft: a weight is neither dense, nor in 8-bit rows, nor in tiles of 4 bits")
        n, k = weight.shape
        if bias is not None and bias.shape != (n,):
            raise ValueError(f"draft: a bias {tuple(bias.shape)} beside a weight {(n, k)}")
        fields = {"bias": self._held.float32(bias), "n": n, "k": k}
        if isinstance(weight, Tensor):
            data, kind, scale, zero, group = weight.detach(), DTYPE_CODES[weight.dtype], None, None, 0
        else:
            tiled = isinstance(weight, PreparedWeight)
            data = weight.tiles if isinstance(weight, PreparedWeight) else weight.packed
            kind = abi.KIND.values["DFQ_TILES" if tiled else "DFQ_CODES8"]
            scale, zero, group = weight.scale, weight.zero, weight.group
        held = {"data": data, "scale": scale, "zero": zero}
        fields |= {name: self._held.address(tensor) for name, tensor in held.items()}
        return abi.words("dfq_draft_linear", {**fields, "kind": kind, "group": group})

    def buffers(self, stores: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The table of a state: keys and values [kv_heads, capacity, head_dim] of every block. It holds addresses."""
        rows = [
            abi.words("dfq_draft_buffer", {"k": k.data_ptr(), "v": v.data_ptr(), "capacity": k.shape[-2]})
            for k, v in stores
        ]
        return table(rows)

    def run(
        self,
        x: Tensor,
        fresh: Tensor | None,
        buffers: Tensor,
        angles: tuple[Tensor, Tensor],
        s: Slots,
        stream: Tensor | None = None,
    ) -> Tensor:
        """x [rows, hidden] and fresh [news, hidden] (None: none), at most LINES rows each; angles: cos and sin float32
        [positions, head_dim]; stream: of x's shape, where the residual stream of a draft with a `side_norm` begins,
        or what a block that joins adds -> behind the final norm, of x's shape. Appends to the buffers."""
        rows, news = len(x), 0 if fresh is None else len(fresh)
        if x.dtype != self.shape.dtype or not 0 < rows <= LINES or news > LINES or x.shape[1] != self.shape.hidden:
            raise ValueError(f"draft: x is {x.dtype} {tuple(x.shape)}, fresh has {news} rows; {LINES} rows are served")
        if stream is not None and (stream.shape != x.shape or stream.dtype != x.dtype):
            raise ValueError(f"draft: the stream is {stream.dtype} {tuple(stream.shape)}, x {x.dtype} {tuple(x.shape)}")
        stream = None if stream is None else stream.contiguous()
        x, fresh = x.contiguous(), None if fresh is None else fresh.contiguous()
        out = torch.empty_like(x)
        cos, sin = angles
        bindings.draft_pass(
            draft=self._table, buffers=buffers, x=x, stream=stream, rows=rows, fresh=fresh, news=news, cos=cos, sin=sin,
            positions=s.positions, at=s.at, verified=s.verified, tree=s.tree, cross_at=s.cross_at,
            features=s.features, drafted=s.drafted, places=s.places, cross_tree=s.cross_tree, out=out,
        )  # fmt: skip
        return out
