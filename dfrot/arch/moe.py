"""Mixtures of experts: pre-norm blocks whose MLP is one of many, chosen per token by a router.

Stored names are those of the checkpoints that their makers publish, one linear per expert; that is also what dfq
writes. transformers merges the experts of a layer into two tensors in memory: see `dfrot.arch.layouts`.
"""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.llama import ATTENTION, LLAMA, QWEN3, K, Q, V, mlp_input, mlp_output
from dfrot.arch.space import Size, Space
from dfrot.arch.spec import Linear, MixtureSpec, Norm

ROUTER = Linear(name="mlp.gate", reads=Space.RESIDUAL, writes=Space.ROUTER, rows=Size.EXPERTS, cols=Size.HIDDEN)
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def _expert(gate: str, up: str, down: str) -> tuple[Linear, ...]:
    """The linears of one expert, by their names."""
    return (mlp_input(gate, activated=True), mlp_input(up), mlp_output(down))


MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    biases=(),
    norms=(Norm("input_layernorm", (Q, K, V)), Norm("post_attention_layernorm", ("block_sparse_moe.gate",))),
    linears=ATTENTION,
    experts=MixtureSpec(
        container="block_sparse_moe.experts",
        linears=_expert("w1", "w3", "w2"),
        router=replace(ROUTER, name="block_sparse_moe.gate"),
        count=("num_local_experts", "num_experts"),
        width="intermediate_size",
        memory=("block_sparse_moe", "mlp"),
        merged=((GATE_UP, ("w1", "w3")), (DOWN, ("w2",))),
    ),
)
EXPERTS = MixtureSpec(
    container="mlp.experts",
    linears=_expert("gate_proj", "up_proj", "down_proj"),
    router=ROUTER,
    count=("num_experts", "num_local_experts"),  # as their makers and as transformers call it
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
    head_norm_sizes=(Size.QUERIES, Size.KEY_VALUES),  # over all heads at once
    experts=replace(EXPERTS, width="intermediate_size"),
    requires=(("clip_qkv", (), "queries, keys and values are clamped, which no rotation of values passes"),),
)
