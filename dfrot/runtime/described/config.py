"""What a described model reads of config.json, with the values that transformers takes where it leaves them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfrot.arch import BoundArch
from dfrot.arch.rope import rope_parameters
from dfrot.runtime.described.rope import ROPE_TYPES

MAX_POSITIONS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
"""Model types that can be built -> max_position_embeddings where config.json has none."""
WINDOW = 4096  # sliding_window of Mistral and Qwen where config.json has none
WINDOW_LAYERS = 28  # max_window_layers of Qwen where config.json has none
_WINDOW_BY_SWITCH = ("qwen2", "qwen3")
_STRANGE = ("is_causal", "attn_implementation", "_attn_implementation", "partial_rotary_factor", "per_layer_config")


@dataclass
class DescribedConfig:
    """The configuration of a described model, with the names of transformers' configurations."""

    stored: dict[str, Any]
    """The language model's config.json."""
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: dict[str, Any]
    sliding_window: int | None
    """Positions that a row of every layer sees, itself included; None: all."""
    hidden_act: str = "silu"
    use_cache: bool = True
    output_hidden_states: bool = False
    _attn_implementation: str = "sdpa"

    @classmethod
    def of(cls, arch: BoundArch) -> DescribedConfig:
        """That of a model for which `refuses` has no reason."""
        config = arch.config
        return cls(
            stored=config,
            model_type=arch.spec.model_type,
            hidden_size=arch.hidden,
            num_hidden_layers=arch.n_layers,
            num_attention_heads=arch.n_heads,
            num_key_value_heads=arch.n_kv_heads,
            head_dim=arch.head_dim,
            vocab_size=arch.vocab_size,
            max_position_embeddings=config.get("max_position_embeddings", MAX_POSITIONS[arch.spec.model_type]),
            rms_norm_eps=arch.norm_eps,
            rope_parameters=rope_parameters(config),
            sliding_window=_window(arch)[1],
        )

    def to_dict(self) -> dict[str, Any]:
        """config.json."""
        return dict(self.stored)

    def get_text_config(self) -> DescribedConfig:
        """Itself: there is no other part."""
        return self


def refuses(arch: BoundArch) -> str | None:
    """Why no described model can be built, so that transformers has to build it; None: it can."""
    config, spec = arch.config, arch.spec
    if arch.wrapper is not None:
        return "the language model of a VLM"
    if spec.model_type not in MAX_POSITIONS:
        return f"models of type {spec.model_type}"
    if strange := [key for key in _STRANGE if config.get(key) is not None]:
        return f"config.json sets {strange[0]}"
    if config.get("hidden_act", "silu") != "silu":
        return f"activation {config['hidden_act']!r}"
    numbers = {"rms_norm_eps": (int, float), "max_position_embeddings": (int,)}
    for key, kinds in numbers.items():
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            return f"{key} is {value!r}"
    return _window(arch)[0] or _refuses_rope(config)


def _window(arch: BoundArch) -> tuple[str | None, int | None]:
    """(why the sliding window is not one for all layers or None, the window or None)."""
    config, model_type = arch.config, arch.spec.model_type
    default = None if model_type == "llama" else WINDOW
    window = config.get("sliding_window", default)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        return f"sliding_window is {window!r}", None
    if model_type not in _WINDOW_BY_SWITCH:
        if config.get("layer_types") is not None or (model_type == "llama" and window is not None):
            return "config.json names windows that the model type does not have", None
        return None, window
    window = window if config.get("use_sliding_window", False) else None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", WINDOW_LAYERS)
        slides = [window is not None and layer >= first for layer in range(arch.n_layers)]
    else:
        slides = [kind == "sliding_attention" for kind in kinds]
        if set(kinds) - {"sliding_attention", "full_attention"} or len(kinds) != arch.n_layers:
            return "layer_types of other kinds", None
    if len(set(slides)) > 1 or (all(slides) and window is None):
        return "sliding windows in some layers only", None
    return None, window if all(slides) else None


def _refuses_rope(config: Mapping[str, Any]) -> str | None:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key), dict | None):
            return f"{key} is {config[key]!r}"
    if config.get("rope_parameters") and config.get("rope_scaling"):
        return "RoPE is described twice"
    parameters = rope_parameters(config)
    kind = parameters["rope_type"]
    if kind not in ROPE_TYPES:
        return f"RoPE of type {kind!r}"
    wanted = ROPE_TYPES[kind]
    if set(parameters) - {"rope_type", "type", "rope_theta"} != set(wanted):
        return f"RoPE of type {kind!r} with other parameters than {', '.join(wanted) or 'none'}"
    for key in ("rope_theta", *wanted):
        value = parameters[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return f"{key} of RoPE is {value!r}"
    return None
