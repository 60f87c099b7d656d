"""Architectures with a learned gain after a residual writer: R1 cannot pass it, so they have R2, R3 and R4 alone."""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.llama import ATTENTION_BIAS, GATE, LLAMA, UP, K, Q, V
from dfrot.arch.space import Size
from dfrot.arch.spec import Norm, Scalars

QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    biases=ATTENTION_BIAS,
    norms=(Norm("post_attention_layernorm", late=True), Norm("post_feedforward_layernorm", late=True)),
    head_norms=QK_NORMS,
    head_norm_sizes=(Size.QUERIES, Size.KEY_VALUES),  # over all heads at once
)
GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    biases=ATTENTION_BIAS,
    norms=(
        Norm("input_layernorm", (Q, K, V), offset=1.0),
        Norm("post_attention_layernorm", late=True, offset=1.0),
        Norm("pre_feedforward_layernorm", (GATE, UP), offset=1.0),
        Norm("post_feedforward_layernorm", late=True, offset=1.0),
    ),
    final_norm=Norm("model.norm", ("lm_head",), offset=1.0),
    tied_by_default=True,
    scalars=Scalars(
        embed="hidden_size",
        embed_root=True,
        logits_cap="final_logit_softcapping",
        attention_cap="attn_logit_softcapping",
    ),
    requires=(("use_bidirectional_attention", (False,), "tokens see what follows them"),),
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text", head_norms=QK_NORMS)
