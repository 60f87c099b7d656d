"""The parts of LLaVA that transformers does not export by name."""

from __future__ import annotations

from typing import Any

from torch import nn


def llava_projector(config: Any) -> nn.Module:
    """A randomly initialised projector from image features to the language model's width, for a LlavaConfig."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return LlavaMultiModalProjector(config)  # type: ignore[no-any-return]
