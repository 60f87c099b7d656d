"""Which calls of a loaded model the native decoder can serve, and what their rows see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.native_operands import NotServable

ANGLE_CHUNK = 512  # positions by which a table of RoPE angles grows
_SERVED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"}
_WITHOUT_EFFECT = {"cache_position", "return_dict", "logits_to_keep"}  # change nothing below the head


class AngleTable:
    """cos and sin of RoPE by position, from a model's own module: float32 [positions, head_dim] each."""

    def __init__(self) -> None:
        self._angles: tuple[Tensor, Tensor] | None = None

    def until(self, end: int, rotary: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """The angles of the positions 0 .. end - 1 at least, rounded as `rotary` rounds them for hidden states `like`
        [1, 1, d]."""
        if self._angles is None or len(self._angles[0]) < end:
            positions = torch.arange((end // ANGLE_CHUNK + 1) * ANGLE_CHUNK)[None]
            cos, sin = rotary(like, positions)
            self._angles = (cos[0].float().contiguous(), sin[0].float().contiguous())
        return self._angles


def input_of(kwargs: dict[str, Any]) -> Tensor:
    """The tokens int64 [B, S] or embeddings [B, S, d] of a call. Raises NotServable where there is neither."""
    inputs = kwargs.get("input_ids")
    inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
    if inputs is None:
        raise NotServable("neither tokens nor embeddings")
    return inputs  # type: ignore[no-any-return]


def packed_cache(kwargs: dict[str, Any]) -> Any:
    """The cache of a call that keeps its keys and values in packed layers. Raises NotServable otherwise."""
    cache = kwargs.get("past_key_values")
    layers = cache.layers if cache is not None else []
    if not layers or type(layers[0]) is not DfqCacheLayer or not layers[0].persistent:
        raise NotServable("no cache (a call that scores a text)")
    if not kwargs.get("use_cache") and not layers[0].length:
        raise NotServable("a cache that nobody asked for (a call that scores a text)")
    return cache


def check_arguments(config: Any, kwargs: dict[str, Any], inputs: Tensor) -> None:
    """Raise NotServable for arguments, outputs and gradients that the decoder does not have."""
    for name, value in kwargs.items():
        if name not in _SERVED and name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise NotServable(f"argument {name}")
    if config.output_hidden_states or getattr(config, "output_attentions", False):
        raise NotServable("hidden states or attentions are wanted")
    if torch.is_grad_enabled() and inputs.requires_grad:
        raise NotServable("a gradient is wanted")


def check_positions(kwargs: dict[str, Any], rows: int, begin: int) -> None:
    """Raise NotServable unless the positions are begin .. begin + rows, none of them padding or hidden by a mask."""
    positions = kwargs.get("position_ids")
    if positions is not None:
        expected = torch.arange(begin, begin + rows)
        if not bool((positions == expected).all()):
            raise NotServable("positions that do not follow one another (padding, trees)")
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask.all())):
        raise NotServable("an attention mask that hides something")


def hook_tables(base: nn.Module) -> list[dict[Any, Any]]:
    """The tables of hooks of all modules below `base` and of torch's global ones: while any of them holds a hook, the
    modules have to run."""
    tables: list[dict[Any, Any]] = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
    for name, module in base.named_modules():
        if name:
            tables += [module._forward_hooks, module._forward_pre_hooks]
    return tables


def kernel_mask(batch: int, rows: int, begin: int, window: int) -> tuple[Tensor | None, Tensor | None]:
    """What the last `rows` of begin + rows positions see within `window` of them (0: all), as `dfq::kv_attention` takes
    it: the first cached position of each row, int64 [B, rows], and which of the new ones, bool [rows, rows]; None: all
    that come before."""
    if not 0 < window < begin + rows:
        return None, None
    first = (torch.arange(begin, begin + rows) + 1 - window).clamp(min=0, max=begin).expand(batch, -1).contiguous()
    new = torch.ones(rows, rows, dtype=torch.bool).tril()
    return first, new.triu(1 - window) if window < rows else None
