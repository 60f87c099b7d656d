"""Mixtures of experts: pre-norm blocks whose MLP is one of many, chosen per token by a router.

Stored names are those of the checkpoints that their makers publish, one linear per expert; that is also what dfq
writes. transformers merges the experts of a layer into two tensors in memory: see `dfrot.arch.layouts`.
"""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.llama import LLAMA, OUT, QWEN3, K, Q, V
from dfrot.arch.spec import Linear, MixtureSpec, Norm

ATTENTION = tuple(one for one in LLAMA.linears if one.name in (Q, K, V, OUT))
ROUTER = Linear("mlp.gate", "residual", "router", "experts", "hidden")
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def _expert(gate: str, up: str, down: str) -> tuple[Linear, ...]:
    return (
        Linear(gate, "residual", "mlp", "mlp", "hidden"),
        Linear(up, "residual", "mlp", "mlp", "hidden"),
        Linear(down, "mlp", "residual", "hidden", "mlp"),
    )


MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    norms=(Norm("input_layernorm", (Q, K, V)), Norm("post_attention_layernorm", ("block_sparse_moe.gate",))),
    linears=ATTENTION,
    experts=MixtureSpec(
        container="block_sparse_moe.experts",
        linears=_expert("w1", "w3", "w2"),
        router=replace(ROUTER, name="block_sparse_moe.gate"),
        count=("num_local_experts",),
        width="intermediate_size",
        memory=("block_sparse_moe", "mlp"),
        merged=((GATE_UP, ("w1", "w3")), (DOWN, ("w2",))),
    ),
)
EXPERTS = MixtureSpec(
    container="mlp.experts",
    linears=_expert("gate_proj", "up_proj", "down_proj"),
    router=ROUTER,
    count=("num_experts", "num_local_experts"),  # their makers' name, transformers'
    width="moe_intermediate_size",
    merged=((GATE_UP, ("gate_proj", "up_proj")), (DOWN, ("down_proj",))),
)
MIXED = "some layers have one MLP and others a mixture"
QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    norms=(Norm("input_layernorm", (Q, K, V)), Norm("post_attention_layernorm", (ROUTER.name,))),
    linears=ATTENTION,
    experts=EXPERTS,
    requires=(("decoder_sparse_step", (1,), MIXED), ("mlp_only_layers", ([],), MIXED)),
)
OLMOE = replace(
    QWEN3_MOE,
    model_type="olmoe",
    head_norm_sizes=("q", "kv"),  # over all heads at once
    experts=replace(EXPERTS, width="intermediate_size"),
    requires=(("clip_qkv", (), "queries, keys and values are clamped, which no rotation of values passes"),),
)
