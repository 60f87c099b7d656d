"""The projector of transformers' LLaVA, which the package does not export."""

from __future__ import annotations

from typing import Any

from torch import nn


def llava_projector(config: Any) -> nn.Module:
    """A randomly initialised LlavaMultiModalProjector of a LlavaConfig."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return LlavaMultiModalProjector(config)  # type: ignore[no-any-return]
