"""Rotary position embeddings (RoPE, arXiv 2104.09864) as config.json describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THETA = 10_000.0  # base of the wavelengths where config.json names none


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of RoPE in config.json, in the form of newer files: `rope_type`, `rope_theta` and others.

    `rope_scaling` of older files counts where both are there, as in transformers: it is what people add to a file."""
    stored = config.get("rope_scaling") or config.get("rope_parameters") or {}
    parameters = {"rope_theta": config.get("rope_theta", THETA), **stored}
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    if parameters["rope_type"] == "llama3" and "max_position_embeddings" in config:
        parameters.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return parameters
