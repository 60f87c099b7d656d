"""The pass of a DREAM or EAGLE-3 draft, or a block of a DFlash draft, as one native call where the draft fits it
(dfrot_kernels/whole_blocks/draft.py).

Otherwise the modules compute it, op by op: the same arithmetic, with other intermediate roundings. Both write the same
buffers, so that passes may alternate: the many rows of a prompt always go through the modules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import Draft
from dfrot.draft.models.dflash_blocks import BlockLayer
from dfrot.draft.models.dream_blocks import CrossBlock, SelfBlock
from dfrot.draft.models.dream_network import DreamNetwork
from dfrot.draft.models.eagle3_network import Eagle3Network, FusedLayer
from dfrot.draft.models.layers import Projections, RMSNorm
from dfrot.quant.modules.linear import QuantLinear
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import (
    DTYPES,
    HEAD_DIM,
    DraftBlock,
    DraftPass,
    DraftShape,
    Weight,
    dense,
    servable,
)


def unfit(draft: Draft) -> str | None:
    """Why the native pass cannot serve a draft, or None if it can."""
    if not native.active():
        return f"no native library: {native.status()}"
    if not all(isinstance(block, (SelfBlock, CrossBlock, BlockLayer, FusedLayer)) for block in _blocks(draft)):
        return f"{draft.config.arch} drafts have none"
    weight: Any = draft.get_parameter("norm.weight")
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"the draft is {weight.dtype} on {weight.device}"
    if isinstance(draft, DreamNetwork) and draft.in_proj is not None:
        return "the draft is narrower than its target"
    if draft.config.head_dim > HEAD_DIM:
        return f"heads of {draft.config.head_dim} values"
    weights = [weight for block in _blocks(draft) for weight in _weights(block)]
    if any(weight is not None and not servable(weight) for weight in weights):
        return "weights in a layout that has no kernel"
    return None


def _blocks(draft: Draft) -> list[Any]:
    """The draft's blocks; of a draft of another make, nothing that could be served."""
    return list(getattr(draft, "layers", [None]))


def native_pass(draft: Draft) -> DraftPass | None:
    """The native pass of a draft with its present weights; None where it cannot serve, or where a gradient may be
    wanted."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in draft.parameters()):
        return None
    if unfit(draft) is not None:
        return None
    config = draft.config
    norm = draft.get_parameter("norm.weight")
    normed_by_head = isinstance(draft, Eagle3Network) or (isinstance(draft, DreamNetwork) and draft.fc is not None)
    shape = DraftShape(
        norm.dtype,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.rms_norm_eps,
    )
    blocks = []
    for block in _blocks(draft):
        if isinstance(block, CrossBlock):
            assert isinstance(draft, DreamNetwork)
            blocks.append(replace(_cross_block(block, draft.feature_norm), joins=draft.joins))
        else:
            blocks.append(_self_block(block))
    return DraftPass(shape, blocks, None if normed_by_head else norm)


def few_rows(linear: Any, x: Tensor) -> Tensor:
    """linear(x) for x [k, in] of few rows: by the kernel for them where it reads the weight, which torch's products of
    one row in bfloat16 are slower than."""
    if type(linear) is not nn.Linear or torch.is_grad_enabled() or x.dtype != linear.weight.dtype:
        return linear(x)  # type: ignore[no-any-return]
    return dense(x, linear.weight) if native.active() and servable(linear.weight) else linear(x)


def _weight(linear: Any) -> Weight:
    if not isinstance(linear, QuantLinear):
        return linear.weight  # type: ignore[no-any-return]
    return linear.stored_weight() if linear.prepared is None else linear.prepared


def _weights(block: Any) -> tuple[Weight | None, ...]:
    """q, k, v, o (None without attention), gate, up, down."""
    attention: Projections | None = block.cross_attn if isinstance(block, CrossBlock) else block.self_attn
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    projections = [None if attention is None else _weight(getattr(attention, name)) for name in names]
    return (
        *projections,
        *(_weight(linear) for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)),
    )


def _self_block(block: SelfBlock | BlockLayer | FusedLayer) -> DraftBlock:
    gains: dict[str, Any] = {}
    input_norm = block.input_layernorm.weight
    if isinstance(block, FusedLayer):  # whose residual stream is the feature's
        input_norm, gains = block.hidden_norm.weight, {"side_norm": input_norm}
    if isinstance(block, BlockLayer):
        gains = {"q_norm": block.self_attn.q_norm.weight, "k_norm": block.self_attn.k_norm.weight}
    return DraftBlock(input_norm, block.post_attention_layernorm.weight, _weights(block), **gains)


def _cross_block(block: CrossBlock, feature_norm: RMSNorm | None) -> DraftBlock:
    gates = (float(block.cross_attn_attn_gate.tanh()), float(block.cross_attn_mlp_gate.tanh()))
    norms, attention = (block.input_layernorm.weight, block.post_attention_layernorm.weight), block.cross_attn
    if attention is None:
        return DraftBlock(*norms, _weights(block), True, gates)
    slopes = None if attention.log_slopes is None else attention.log_slopes.float().exp()
    gains = (attention.q_norm.weight, attention.k_norm.weight)
    gain = None if feature_norm is None else feature_norm.weight
    return DraftBlock(*norms, _weights(block), True, gates, *gains, slopes, feature_norm=gain)
