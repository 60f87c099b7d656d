"""Llama and its relatives: pre-norm blocks, GQA, gated MLP."""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.space import Size, Space
from dfrot.arch.spec import ArchSpec, Linear, Norm, Part, Scalars

Q, K, V, OUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"


def out_projection(name: str) -> Linear:
    """Attention's output projection."""
    return Linear(name=name, reads=Space.VALUE, writes=Space.RESIDUAL, rows=Size.HIDDEN, cols=Size.QUERIES)


def mlp_input(name: str, activated: bool = False) -> Linear:
    """The up projection of a gated MLP, or (`activated`) its gate."""
    return Linear(
        name=name,
        reads=Space.RESIDUAL,
        writes=Space.MLP,
        rows=Size.INTERMEDIATE,
        cols=Size.HIDDEN,
        activated=activated,
    )


def mlp_output(name: str) -> Linear:
    """The down projection of a gated MLP."""
    return Linear(name=name, reads=Space.MLP, writes=Space.RESIDUAL, rows=Size.HIDDEN, cols=Size.INTERMEDIATE)


ATTENTION = (
    Linear(name=Q, reads=Space.RESIDUAL, writes=Space.QUERY_KEY, rows=Size.QUERIES, cols=Size.HIDDEN),
    Linear(name=K, reads=Space.RESIDUAL, writes=Space.QUERY_KEY, rows=Size.KEY_VALUES, cols=Size.HIDDEN),
    Linear(name=V, reads=Space.RESIDUAL, writes=Space.VALUE, rows=Size.KEY_VALUES, cols=Size.HIDDEN),
    out_projection(OUT),
)
ATTENTION_BIAS = tuple((name, "attention_bias") for name in (Q, K, V, OUT))
LLAMA = ArchSpec(
    model_type="llama",
    embed="model.embed_tokens",
    block="model.layers.{i}",
    norms=(Norm("input_layernorm", (Q, K, V)), Norm("post_attention_layernorm", (GATE, UP))),
    linears=(*ATTENTION, mlp_input(GATE, activated=True), mlp_input(UP), mlp_output(DOWN)),
    final_norm=Norm("model.norm", ("lm_head",)),
    head=Linear(name="lm_head", reads=Space.RESIDUAL, writes=Space.VOCAB, rows=Size.VOCAB, cols=Size.HIDDEN),
    biases=(*ATTENTION_BIAS, *((name, "mlp_bias") for name in (GATE, UP, DOWN))),
)
MISTRAL = replace(LLAMA, model_type="mistral", biases=())
QWEN2 = replace(LLAMA, model_type="qwen2", biases=((Q, ""), (K, ""), (V, "")))
GRANITE = replace(
    LLAMA,
    model_type="granite",
    scalars=Scalars(
        embed="embedding_multiplier",
        residual="residual_multiplier",
        attention="attention_multiplier",
        logits="logits_scaling",
    ),
)
PHI3 = replace(  # phi-4 as well
    LLAMA,
    model_type="phi3",
    biases=(),
    partial_rotary=True,
    norms=(Norm("input_layernorm", (QKV,)), Norm("post_attention_layernorm", (GATE_UP,))),
    linears=(
        Linear(
            name=QKV,
            reads=Space.RESIDUAL,
            writes=Space.SEVERAL,
            rows=Size.FUSED_QKV,
            cols=Size.HIDDEN,
            parts=(
                Part(Space.QUERY_KEY, Size.QUERIES),
                Part(Space.QUERY_KEY, Size.KEY_VALUES),
                Part(Space.VALUE, Size.KEY_VALUES),
            ),
        ),
        out_projection(OUT),
        Linear(
            name=GATE_UP,
            reads=Space.RESIDUAL,
            writes=Space.SEVERAL,
            rows=Size.FUSED_GATE_UP,
            cols=Size.HIDDEN,
            parts=(Part(Space.MLP, Size.INTERMEDIATE, activated=True), Part(Space.MLP, Size.INTERMEDIATE)),
        ),
        mlp_output(DOWN),
    ),
)
QWEN3 = replace(LLAMA, model_type="qwen3", head_norms=("self_attn.q_norm", "self_attn.k_norm"), biases=ATTENTION_BIAS)
