"""The parts of a draft block: norm, gated MLP, attention projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.draft.models.config import DraftConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 (or wider), returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> [..., size]."""
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
        """x [..., size] -> [..., size]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Projections(nn.Module):
    """q, k, v and o of an attention."""

    def __init__(self, config: DraftConfig, q_in: int, kv_in: int, out: int) -> None:
        """q_in: width that queries read; kv_in: width that keys and values read; out: width that o writes."""
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
        """x [B, n, kv_in] -> keys and values [B, Hkv, n, D]."""
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.dim)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.dim)).transpose(1, 2)
        return k, v

    def output(self, mixed: Tensor) -> Tensor:
        """What attention gathered, [B, H, n, D] -> [B, n, out]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]
