"""Llama and its relatives: pre-norm blocks, GQA, gated MLP."""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.spec import ArchSpec, Linear, Norm, Scalars

Q, K, V, OUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))

LLAMA = ArchSpec(
    model_type="llama",
    embed="model.embed_tokens",
    block="model.layers.{i}",
    norms=(Norm("input_layernorm", (Q, K, V)), Norm("post_attention_layernorm", (GATE, UP))),
    linears=(
        Linear(Q, "residual", "qk", "q", "hidden"),
        Linear(K, "residual", "qk", "kv", "hidden"),
        Linear(V, "residual", "v", "kv", "hidden"),
        Linear(OUT, "v", "residual", "hidden", "q"),
        Linear(GATE, "residual", "mlp", "mlp", "hidden"),
        Linear(UP, "residual", "mlp", "mlp", "hidden"),
        Linear(DOWN, "mlp", "residual", "hidden", "mlp"),
    ),
    final_norm=Norm("model.norm", ("lm_head",)),
    head=Linear("lm_head", "residual", "vocab", "vocab", "hidden"),
)
MISTRAL = replace(LLAMA, model_type="mistral")
QWEN2 = replace(LLAMA, model_type="qwen2")  # q, k, v carry biases: found in the checkpoint, not declared
GRANITE = replace(
    LLAMA,
    model_type="granite",
    scalars=Scalars("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
)
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
PHI3 = replace(  # phi-4 as well
    LLAMA,
    model_type="phi3",
    norms=(Norm("input_layernorm", (QKV,)), Norm("post_attention_layernorm", (GATE_UP,))),
    linears=(
        Linear(QKV, "residual", "qkv", "qkv", "hidden", (("qk", "q"), ("qk", "kv"), ("v", "kv"))),
        Linear(OUT, "v", "residual", "hidden", "q"),
        Linear(GATE_UP, "residual", "gate_up", "gate_up", "hidden", (("mlp", "mlp"), ("mlp", "mlp"))),
        Linear(DOWN, "mlp", "residual", "hidden", "mlp"),
    ),
)
QWEN3 = replace(LLAMA, model_type="qwen3", head_norms=("self_attn.q_norm", "self_attn.k_norm"))
