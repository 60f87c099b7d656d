"""The pass of a DREAM draft as one native call (dfrot_kernels/whole_blocks/draft.py), where the draft fits it.

Otherwise the modules compute it, op by op: the same arithmetic, with other intermediate roundings. Both write the same
buffers, so that passes may alternate: the many rows of a prompt always go through the modules.
"""

from __future__ import annotations

from typing import Any

import torch

from dfrot.draft.models.base import Draft
from dfrot.draft.models.dream_blocks import CrossBlock, SelfBlock
from dfrot.draft.models.dream_network import DreamNetwork
from dfrot.draft.models.layers import Projections
from dfrot.quant.linear import QuantLinear
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import DTYPES, HEAD_DIM, DraftBlock, DraftPass, DraftShape, Weight, servable


def unfit(draft: Draft) -> str | None:
    """Why the native pass cannot serve a draft, or None if it can."""
    if not native.active():
        return f"no native library: {native.status()}"
    if not isinstance(draft, DreamNetwork):
        return f"{draft.config.arch} drafts have none"
    weight = draft.norm.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"the draft is {weight.dtype} on {weight.device}"
    if draft.in_proj is not None:
        return "the draft is narrower than its target"
    if draft.config.head_dim > HEAD_DIM:
        return f"heads of {draft.config.head_dim} values"
    weights = [weight for block in draft.layers for weight in _weights(block)]
    if any(weight is not None and not servable(weight) for weight in weights):
        return "weights in a layout that has no kernel"
    return None


def native_pass(draft: DreamNetwork) -> DraftPass | None:
    """The native pass of a draft with its present weights; None where it cannot serve, or where a gradient may be
    wanted."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in draft.parameters()):
        return None
    if unfit(draft) is not None:
        return None
    config = draft.config
    shape = DraftShape(
        draft.norm.weight.dtype,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.rms_norm_eps,
    )
    blocks = [_self_block(draft.first), _cross_block(draft.cross), *map(_self_block, draft.final)]
    return DraftPass(shape, blocks, draft.norm.weight)


def _weight(linear: Any) -> Weight:
    if not isinstance(linear, QuantLinear):
        return linear.weight  # type: ignore[no-any-return]
    return linear.stored_weight() if linear.prepared is None else linear.prepared


def _weights(block: Any) -> tuple[Weight | None, ...]:
    """q, k, v, o (None without attention), gate, up, down."""
    attention: Projections | None = block.self_attn if isinstance(block, SelfBlock) else block.cross_attn
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    projections = [None if attention is None else _weight(getattr(attention, name)) for name in names]
    return (
        *projections,
        *(_weight(linear) for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)),
    )


def _self_block(block: SelfBlock) -> DraftBlock:
    return DraftBlock(block.input_layernorm.weight, block.post_attention_layernorm.weight, _weights(block))


def _cross_block(block: CrossBlock) -> DraftBlock:
    gates = (float(block.cross_attn_attn_gate.tanh()), float(block.cross_attn_mlp_gate.tanh()))
    norms, attention = (block.input_layernorm.weight, block.post_attention_layernorm.weight), block.cross_attn
    if attention is None:
        return DraftBlock(*norms, _weights(block), True, gates)
    slopes = None if attention.log_slopes is None else attention.log_slopes.float().exp()
    gains = (attention.q_norm.weight, attention.k_norm.weight)
    return DraftBlock(*norms, _weights(block), True, gates, *gains, slopes)
