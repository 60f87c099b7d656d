"""From a config to a draft, and from a target's sizes to a config."""

from __future__ import annotations

from typing import Any

from dfrot.arch import BoundArch
from dfrot.draft.base import Draft
from dfrot.draft.config import DraftConfig
from dfrot.draft.dream import DreamDraft
from dfrot.draft.eagle3 import Eagle3Draft

CLASSES: dict[str, type[Draft]] = {"dream": DreamDraft, "eagle3": Eagle3Draft}


def build(config: DraftConfig) -> Draft:
    """An untrained draft, seeded by torch's generator."""
    return CLASSES[config.arch](config)


def config_for(arch: BoundArch, kind: str, **changes: Any) -> DraftConfig:
    """A draft with the target's widths. `changes` override single keys."""
    rope = arch.config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    layers = arch.n_layers
    values: dict[str, Any] = {
        "arch": kind,
        "hidden_size": arch.hidden,
        "target_hidden_size": arch.hidden,
        "intermediate_size": arch.intermediate,
        "num_attention_heads": arch.n_heads,
        "num_key_value_heads": arch.n_kv_heads,
        "head_dim": arch.head_dim,
        "vocab_size": arch.sizes["vocab"],
        "rms_norm_eps": float(arch.config.get("rms_norm_eps", 1e-5)),
        "rope_theta": float(theta or arch.config.get("rope_theta") or 10000.0),
        "max_position_embeddings": int(arch.config.get("max_position_embeddings", 2048)),
    }
    if kind == "eagle3":
        values["aux_layers"] = (min(2, layers - 1), layers // 2, max(layers - 3, 1))
    return DraftConfig(**{**values, **changes})
