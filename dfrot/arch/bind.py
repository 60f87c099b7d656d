"""Resolving the sizes of an architecture from a `config.json`."""

from __future__ import annotations

from typing import Any

from dfrot.arch.bound import BoundArch
from dfrot.arch.defaults import with_omitted_sizes
from dfrot.arch.space import Size
from dfrot.arch.spec import ArchSpec
from dfrot.errors import InputError, UnsupportedError


def bind(spec: ArchSpec, config: dict[str, Any]) -> BoundArch:
    """The description of a checkpoint with this `config.json`. Raises InputError on missing or inconsistent values,
    UnsupportedError for what the architecture's description does not cover."""
    for key, values, meaning in spec.requires:
        if (value := config.get(key)) is not None and value not in values:
            raise UnsupportedError(f"config.json: {key} is {value!r}: {meaning}, which dfq does not support")
    config = with_omitted_sizes(config, spec.model_type)
    _check_window(config)
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", heads)
    if not config.get("head_dim") and hidden % heads:
        raise InputError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    head_dim = _size(config, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise InputError(f"config.json: num_attention_heads {heads} is not a multiple of key/value heads {kv_heads}")
    mixture = spec.experts
    width = _size(config, mixture.width if mixture is not None else "intermediate_size")
    experts = 0
    if mixture is not None:
        present = [key for key in mixture.count if config.get(key) is not None]
        experts = _size(config, (present or mixture.count)[0])
        if (chosen := _size(config, "num_experts_per_tok", 1)) > experts:
            raise InputError(f"config.json: num_experts_per_tok is {chosen}, there are {experts} experts")
    return BoundArch(
        spec=spec.with_experts(experts),
        config=config,
        n_layers=_size(config, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        sizes={
            Size.HIDDEN: hidden,
            Size.QUERIES: heads * head_dim,
            Size.KEY_VALUES: kv_heads * head_dim,
            Size.INTERMEDIATE: width,
            Size.VOCAB: _size(config, "vocab_size"),
            Size.HEAD_DIM: head_dim,
            Size.FUSED_QKV: (heads + 2 * kv_heads) * head_dim,
            Size.FUSED_GATE_UP: 2 * width,
            Size.EXPERTS: experts,
        },
    )


def _check_window(config: dict[str, Any]) -> None:
    """Raise InputError for a sliding window in which a token would not even see itself: all sums would be NaN."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return
    if type(window) is not int or window < 1:
        raise InputError(
            f"config.json: sliding_window is {window!r}, a positive integer is needed, or null for no window"
        )


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer of `config.json`. Raises InputError otherwise."""
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 0 < value < 2**31:
        raise InputError(f"config.json: {key} is {value!r}, a positive integer is needed")
    return value
