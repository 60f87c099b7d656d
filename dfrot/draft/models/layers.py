"""The parts of a draft block: norm, attention projections, rotary embedding, gated MLP, attention itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.draft.models.config import DraftConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 (or wider) and returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Projections(nn.Module):
    """q, k, v, o of one attention; queries read width `q_in`, keys and values `kv_in`."""

    def __init__(self, config: DraftConfig, q_in: int, kv_in: int, out: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(q_in, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(kv_in, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(kv_in, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, out, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """x [B, n, q_in] -> [B, H, n, D]."""
        return self.q_proj(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2)  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, n, kv_in] -> two of [B, Hkv, n, D]."""
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.dim)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.dim)).transpose(1, 2)
        return k, v

    def output(self, mixed: Tensor) -> Tensor:
        """mixed [B, H, n, D] -> [B, n, out]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


CHUNK = 512  # positions by which a table of angles grows


class Rotary:
    """Rotary position embedding (arXiv 2104.09864), half-split layout, from a table of `max_position_embeddings`.

    Not a module: its table is derived, and `draft.to(bfloat16)` must not round angles."""

    def __init__(self, config: DraftConfig) -> None:
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] / config.rope_theta**half
        self.angles = torch.cat([angles, angles], -1)
        self.tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.wide: tuple[Tensor, Tensor] | None = None
        self.last: tuple[Tensor, torch.dtype, Tensor, Tensor] | None = None  # of one pass, whose blocks ask alike

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin float32 [.., D] of at least the first so many positions, on the CPU. Raises IndexError beyond
        `max_position_embeddings`: the kernels would read what is not there."""
        if positions > len(self.angles):
            raise IndexError(f"position {positions - 1}: the draft was made for {len(self.angles)}")
        if self.wide is None or len(self.wide[0]) < positions:
            part = self.angles[: (positions // CHUNK + 1) * CHUNK]
            self.wide = (part.cos().float(), part.sin().float())
        return self.wide

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, heads, n, D], positions int64 [B or 1, n]."""
        if self.last is None or self.last[0] is not positions or self.last[1] != x.dtype:
            kind = (x.dtype, x.device)
            if kind not in self.tables:
                self.tables[kind] = (self.angles.cos().to(x), self.angles.sin().to(x))
            cos, sin = (table[positions].unsqueeze(1) for table in self.tables[kind])
            self.last = (positions, x.dtype, cos, sin)
        _, _, cos, sin = self.last
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, H, n, D] over k, v [B, Hkv, m, D]; mask bool [n, m], True is visible, None is everything; or float
    [H, n, m], added to the scaled scores."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


Diagonal = tuple[Tensor, Tensor, Tensor]
"""Keys and values [B, Hkv, n, D], one per query row, and bool [B, n]: whether the row has it."""


def attend_with_diagonals(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    diagonals: Sequence[Diagonal],
    bias: Tensor | None = None,
    own_bias: Sequence[Tensor] = (),
) -> Tensor:
    """One softmax over a dense block k, v [B, Hkv, m, D] with mask [B or 1, n, m] and over single keys per row.

    The training-time test needs this: in each of its extra key blocks a row sees at most one key, so a dense mask
    of width n per step would be nearly all False. A row with nothing visible gives 0.

    bias [B or 1, H, n, m] and own_bias [H] per diagonal are added to the scaled scores.
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    rows = q.reshape(batch, k.shape[1], groups, length, dim)  # [B, Hkv, G, n, D]
    scores = [(rows @ k.unsqueeze(2).transpose(-1, -2)).masked_fill(~mask[:, None, None], -torch.inf)]
    for own, _, there in diagonals:
        single = (rows * own.unsqueeze(2)).sum(-1, keepdim=True)
        scores.append(single.masked_fill(~there[:, None, None, :, None], -torch.inf))
    joined = torch.cat(scores, -1) if diagonals else scores[0]
    wide = joined.float() if joined.dtype in (torch.bfloat16, torch.float16) else joined
    wide = wide * dim**-0.5
    if bias is not None:
        ones = [one[:, None, None].expand(bias.shape[0], -1, length, 1) for one in own_bias]
        wide = wide + torch.cat([bias, *ones], -1).unflatten(1, (-1, groups))  # type: ignore[no-untyped-call]
    weights = wide.softmax(-1)
    weights = torch.where(torch.isfinite(weights), weights, 0.0).to(v.dtype)
    out = weights[..., : k.shape[2]] @ v.unsqueeze(2)
    for number, (_, own, _) in enumerate(diagonals):
        out = out + weights[..., k.shape[2] + number, None] * own.unsqueeze(2)
    return out.flatten(1, 2).reshape(batch, heads, length, dim)
