"""Attention of a prompt over a packed cache: `prompt_attention`."""

from __future__ import annotations

from dfrot_kernels.ops.prompt_attention import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "prompt_attention",
        schema.PROMPT_ATTENTION,
        schema.check_prompt_attention,
        schema.prompt_attention_shape,
        reference.prompt_attention,
        native.prompt_attention,
    ),
)
