"""From a config to a draft, and from a target's sizes to a config."""

from __future__ import annotations

from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.draft.models.base import Draft
from dfrot.draft.models.config import BLOCK_SIZE, NUM_LAYERS, READ_LAYERS, DraftConfig
from dfrot.draft.models.dflash import DFlashDraft
from dfrot.draft.models.dream import DreamDraft
from dfrot.draft.models.eagle3 import Eagle3Draft

CLASSES: dict[str, type[Draft]] = {"dream": DreamDraft, "eagle3": Eagle3Draft, "dflash": DFlashDraft}
# what transformers assumes where config.json leaves it out
DEFAULT_EPS, DEFAULT_THETA, DEFAULT_POSITIONS = 1e-5, 10000.0, 2048


def build(config: DraftConfig) -> Draft:
    """An untrained draft, initialised from torch's global generator."""
    return CLASSES[config.arch](config)


def config_for(arch: BoundArch, kind: str, **changes: Any) -> DraftConfig:
    """The config of a draft with the target's widths.

    arch: the target's architecture. kind: `dream`, `eagle3` or `dflash`. changes: values of single fields instead, and
    `reads_layers` for a dream draft that reads three layers."""
    reads_layers = changes.pop("reads_layers", False) or kind in READ_LAYERS
    values: dict[str, Any] = {
        "arch": kind,
        "hidden_size": arch.hidden,
        "target_hidden_size": arch.hidden,
        "intermediate_size": arch.intermediate,
        "num_attention_heads": arch.n_heads,
        "num_key_value_heads": arch.n_kv_heads,
        "head_dim": arch.head_dim,
        "vocab_size": arch.sizes["vocab"],
        "rms_norm_eps": float(arch.config.get("rms_norm_eps", DEFAULT_EPS)),
        "rope_theta": _theta(arch.config),
        "max_position_embeddings": _positions(arch.config),
    }
    if reads_layers:
        values["aux_layers"] = _aux_layers(arch.n_layers)
    if kind == "dflash":
        mask = arch.sizes["vocab"] - 1  # often padding of the vocabulary, and rare otherwise
        values |= {"num_layers": NUM_LAYERS, "block_size": BLOCK_SIZE, "mask_token_id": mask}
    return DraftConfig(**{**values, **changes})


def _aux_layers(layers: int) -> tuple[int, int, int]:
    """An early, a middle and a late layer, as EAGLE-3 chooses them: 2, half, and the third from the end."""
    return (min(2, layers - 1), layers // 2, max(layers - 3, 1))


def _theta(config: dict[str, Any]) -> float:
    """The base of RoPE. Where kinds of attention have their own, that of the first layer, with which a draft begins."""
    rope, kinds = config.get("rope_parameters"), config.get("layer_types")
    rope = rope if isinstance(rope, dict) else {}
    if kinds and isinstance(rope.get(kinds[0]), dict):
        rope = rope[kinds[0]]
    return float(rope.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA)


def _positions(config: dict[str, Any]) -> int:
    """The target's context, which transformers knows where config.json leaves it out."""
    if "max_position_embeddings" not in config:
        from dfrot.runtime.block_runner import hf_config

        return int(getattr(hf_config(config, torch.float32), "max_position_embeddings", DEFAULT_POSITIONS))
    return int(config["max_position_embeddings"])
