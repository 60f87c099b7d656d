"""One pass of a DREAM draft as one native call (csrc/dfq_draft.h): its operands, its tables, the call.

Not an operator of torch.ops, for the reasons that decoder.py gives. The modules of dfrot/draft/dream.py are its
reference; tests compare the two. Arithmetic is float32 whatever the weights are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot_kernels import native
from dfrot_kernels.cpu import DTYPE_CODES
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.tables import Held, check_words, word

LINES = 16  # most rows of a call
HEAD_DIM = 512  # widest head
DTYPES = (torch.float32, torch.bfloat16)  # of inputs, outputs, buffers and dense weights

_CODES8, _TILES = 8, 16  # kinds of weights beside the dense dtypes
_LINEAR, _BLOCK, _DRAFT, _BUFFER = 7, 8 + 7 * 7, 10, 3  # words of the structs in dfq_draft.h

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
        native.call("dfq_dense", x, DTYPE_CODES[x.dtype], x[..., 0].numel(), *weight.shape, weight, out)
    return out


@dataclass(frozen=True)
class DraftBlock:
    """One block. Norm gains [hidden] (q_norm, k_norm [head_dim] or None), of any dtype. weights: q, k, v, o, gate, up,
    down, the first four None in a block without attention. gates: factors of what attention and MLP add. cross: keys
    and values come from features, and scores lean towards near ones by `slopes` [heads], if any."""

    input_norm: Tensor
    mlp_norm: Tensor
    weights: tuple[Weight | None, ...]
    cross: bool = False
    gates: tuple[float, float] = (1.0, 1.0)
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    slopes: Tensor | None = None


@dataclass(frozen=True)
class DraftShape:
    """Sizes and constants; dtype: of inputs, outputs and buffers."""

    dtype: torch.dtype
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    eps: float


@dataclass(frozen=True)
class Slots:
    """What new slots see, see dfq_draft.h. positions int64 [rows]; tree bool [rows, at + rows - verified] or None;
    places int64 [drafted]; cross_tree bool [rows, drafted] or None."""

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

    def __init__(self, shape: DraftShape, blocks: Sequence[DraftBlock], final_norm: Tensor) -> None:
        check_words("dfq_draft_words", (_LINEAR, _BLOCK, _DRAFT, _BUFFER))
        self.shape, self.layers = shape, len(blocks)
        self._held = Held("draft")
        self._blocks = torch.tensor([self._block(block) for block in blocks], dtype=torch.int64)
        words = [self._blocks.data_ptr(), self._held.float32(final_norm), DTYPE_CODES[shape.dtype], self.layers]
        words += [shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.mlp, word(shape.eps)]
        self._table = torch.tensor(words, dtype=torch.int64)

    def _block(self, block: DraftBlock) -> list[int]:
        gains = (block.input_norm, block.mlp_norm, block.q_norm, block.k_norm, block.slopes)
        words = [*map(self._held.float32, gains), *map(word, block.gates), int(block.cross)]
        for weight in block.weights:
            words += [0] * _LINEAR if weight is None else self._linear(weight)
        return words

    def _linear(self, weight: Weight) -> list[int]:
        if not servable(weight):
            raise ValueError("draft: a weight is neither dense, nor in 8-bit rows, nor in tiles of 4 bits")
        if isinstance(weight, Tensor):
            return [self._held.address(weight.detach()), 0, 0, DTYPE_CODES[weight.dtype], *weight.shape, 0]
        tiled = isinstance(weight, PreparedWeight)
        data = weight.tiles if isinstance(weight, PreparedWeight) else weight.packed
        words = [self._held.address(data), self._held.address(weight.scale), self._held.address(weight.zero)]
        return [*words, _TILES if tiled else _CODES8, *weight.shape, weight.group]

    def buffers(self, stores: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The table of a state: keys and values [kv_heads, capacity, head_dim] of every block. It holds addresses."""
        rows = [[keys.data_ptr(), values.data_ptr(), keys.shape[-2]] for keys, values in stores]
        return torch.tensor(rows, dtype=torch.int64)

    def run(self, x: Tensor, fresh: Tensor | None, buffers: Tensor, angles: tuple[Tensor, Tensor], s: Slots) -> Tensor:
        """x [rows, hidden] and fresh [news, hidden] (None: none), at most LINES rows each; angles: cos and sin float32
        [positions, head_dim] -> behind the final norm, of x's shape. Appends to the buffers."""
        rows, news = len(x), 0 if fresh is None else len(fresh)
        if x.dtype != self.shape.dtype or not 0 < rows <= LINES or news > LINES or x.shape[1] != self.shape.hidden:
            raise ValueError(f"draft: x is {x.dtype} {tuple(x.shape)}, fresh has {news} rows; {LINES} rows are served")
        x, fresh = x.contiguous(), None if fresh is None else fresh.contiguous()
        out = torch.empty_like(x)
        seen = (s.positions, s.at, s.verified, s.tree, s.cross_at, s.features, s.drafted, s.places, s.cross_tree)
        native.call("dfq_draft_pass", self._table, buffers, x, rows, fresh, news, *angles, *seen, out)
        return out
