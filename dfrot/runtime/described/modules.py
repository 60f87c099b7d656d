"""The modules of a described model: pre-norm blocks with gated MLPs, named as transformers names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.arch import BoundArch
from dfrot.runtime.attention import attend
from dfrot.runtime.dense_attention import dense_attention
from dfrot.runtime.described.cache import DescribedCache
from dfrot.runtime.described.config import DescribedConfig
from dfrot.runtime.described.rope import RotaryEmbedding, rotate_pairs


@dataclass
class DescribedOutput:
    """What a described model returns below its head."""

    last_hidden_state: Tensor
    """[B, S, hidden]."""
    past_key_values: Any
    """The cache."""


Decode = Callable[["DescribedModel", Tensor, DescribedCache], Tensor | None]
"""(model, ids, cache) -> the features of a call, where something faster than the modules serves it, else None."""


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta", dtype=dtype), requires_grad=False)


def _linear(rows: int, cols: int, has_bias: bool, dtype: torch.dtype) -> nn.Linear:
    """An ordinary linear, made without its constructor: the random numbers that it draws would, for parameters on the
    meta device, import PyTorch's compiler."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.in_features, linear.out_features = cols, rows
    linear.weight = _parameter(rows, cols, dtype=dtype)
    linear.register_parameter("bias", _parameter(rows, dtype=dtype) if has_bias else None)
    return linear


class DescribedNorm(nn.Module):
    """Division by the root mean square (arXiv 1910.07467), computed in float32 and rounded before the gain."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _parameter(size, dtype=dtype)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class DescribedAttention(nn.Module):
    """Attention with RoPE, and with norms of queries and keys where the architecture has them."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, config: DescribedConfig, layer: int, head_norms: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.scaling = config.head_dim**-0.5
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if head_norms:
            self.q_norm, self.k_norm = (DescribedNorm(config.head_dim, config.rms_norm_eps, dtype) for _ in range(2))

    def _heads(self, x: Tensor, linear: nn.Module, norm: nn.Module | None) -> Tensor:
        """[B, S, hidden] -> [B, heads, S, D]."""
        states = linear(x).view(*x.shape[:-1], -1, self.head_dim)
        return (states if norm is None else norm(states)).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: DescribedCache) -> Tensor:
        """x [B, S, hidden] -> the same shape. cos, sin [B, S, D]; mask: as dfrot.runtime.attention.attend takes it."""
        query = rotate_pairs(self._heads(x, self.q_proj, self.q_norm), cos, sin)
        key = rotate_pairs(self._heads(x, self.k_proj, self.k_norm), cos, sin)
        keys, values = cache.update(key, self._heads(x, self.v_proj, None), self.layer)
        mixed, _ = attend(self, query, keys, values, mask, dense_attention, scaling=self.scaling)
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1).contiguous())  # type: ignore[no-any-return]


class DescribedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DescribedBlock(nn.Module):
    """One decoder layer."""

    def __init__(self, arch: BoundArch, config: DescribedConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = DescribedAttention(config, layer, bool(arch.spec.head_norms), dtype)
        self.mlp = DescribedMLP()
        self.input_layernorm, self.post_attention_layernorm = (
            DescribedNorm(arch.hidden, config.rms_norm_eps, dtype) for _ in range(2)
        )
        for linear in arch.spec.linears:
            rows, cols = arch.shape(linear)
            switch = arch.spec.bias_switch(linear.name)
            has_bias = switch is not None and (not switch or bool(arch.config.get(switch)))
            self.set_submodule(linear.name, _linear(rows, cols, has_bias, dtype))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: DescribedCache) -> Tensor:
        """x [B, S, hidden] -> the same shape; see DescribedAttention."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class DescribedModel(nn.Module):
    """The language model below its head."""

    _supports_sdpa = True

    def __init__(self, arch: BoundArch, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = DescribedConfig.of(arch)
        table = torch.empty(arch.vocab_size, arch.hidden, device="meta", dtype=dtype)
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden, _weight=table)
        self.layers = nn.ModuleList(DescribedBlock(arch, self.config, layer, dtype) for layer in range(arch.n_layers))
        self.norm = DescribedNorm(arch.hidden, self.config.rms_norm_eps, dtype)
        self.rotary_emb = RotaryEmbedding(self.config.rope_parameters, arch.head_dim)
        self.decode: Decode | None = None

    def empty_cache(self) -> DescribedCache:
        """A cache for a text that begins."""
        return DescribedCache()

    def make_output(self, hidden: Tensor, cache: Any) -> DescribedOutput:
        """The output object of a call that something else computed."""
        return DescribedOutput(hidden, cache)

    def forward(
        self, input_ids: Tensor, past_key_values: DescribedCache | None = None, use_cache: bool = True
    ) -> DescribedOutput:
        """input_ids int64 [B, S] behind what the cache holds, to which they are appended. use_cache: as transformers
        has it; False changes nothing."""
        cache = self.empty_cache() if past_key_values is None else past_key_values
        if self.decode is not None and (features := self.decode(self, input_ids, cache)) is not None:
            return DescribedOutput(features, cache)
        x, begin, rows = self.embed_tokens(input_ids), cache.get_seq_length(), input_ids.shape[1]
        cos, sin = self.rotary_emb(x, torch.arange(begin, begin + rows)[None])
        mask = _mask(rows, begin, self.config.sliding_window or 0)
        for block in self.layers:
            x = block(x, cos, sin, mask, cache)
        return DescribedOutput(self.norm(x), cache)


def _mask(rows: int, begin: int, window: int) -> Tensor | None:
    """The mask of a call, as transformers makes it: none where a function that is causal by itself sees the same."""
    if (rows == 1 or begin == 0) and not 0 < window <= begin + rows:
        return None
    row_positions, positions = torch.arange(begin, begin + rows)[:, None], torch.arange(begin + rows)[None]
    visible = positions <= row_positions
    if window:
        visible = visible & (positions > row_positions - window)
    return visible[None, None]


class DescribedCausalLM(nn.Module):
    """A language model with its head: what plain decoding needs of a transformers model, under the same names."""

    def __init__(self, arch: BoundArch, dtype: torch.dtype, end_tokens: Any) -> None:
        """dtype: of floating-point tensors, which are on the meta device until they are loaded. end_tokens: the id or
        ids that end a text, or None."""
        super().__init__()
        self.model = DescribedModel(arch, dtype)
        self.config, self.dtype = self.model.config, dtype
        self.lm_head = _linear(arch.vocab_size, arch.hidden, False, dtype)
        self.generation_config = GenerationDefaults(end_tokens)
        embed, head = f"{arch.spec.embed}.weight", f"{arch.spec.head.name}.weight"
        self.all_tied_weights_keys = {head: embed} if arch.tied else {}

    @property
    def base_model(self) -> DescribedModel:
        """The part below the head."""
        return self.model

    def get_decoder(self) -> DescribedModel:
        """The same."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json says."""

    eos_token_id: int | list[int] | None
    """The id or ids that end a text."""
