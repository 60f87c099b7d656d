"""Architectures with a learned gain after a residual writer: described so that they are refused with a reason."""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.llama import GATE, LLAMA, UP, K, Q, V
from dfrot.arch.spec import Norm

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    norms=(Norm("post_attention_layernorm", late=True), Norm("post_feedforward_layernorm", late=True)),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
)
GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    norms=(
        Norm("input_layernorm", (Q, K, V), offset=1.0),
        Norm("post_attention_layernorm", late=True, offset=1.0),
        Norm("pre_feedforward_layernorm", (GATE, UP), offset=1.0),
        Norm("post_feedforward_layernorm", late=True, offset=1.0),
    ),
    final_norm=Norm("model.norm", ("lm_head",), offset=1.0),
    tied_by_default=True,
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text", head_norms=("self_attn.q_norm", "self_attn.k_norm"))
