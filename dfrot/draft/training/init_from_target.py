"""Initialising a draft from its target: its blocks begin as blocks of the target, in the target's (rotated) basis.

The first block copies the target's first, the last block its last (dflash, whose context is made of features: all
copy last ones). Behind them the target's head gives sensible logits
from the first step on, and training need not learn the geometry of the vocabulary again. Weights are dequantized, and
the online rotation of the MLP's inner activations (R4), which the draft does not apply, is folded back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import ArchSpec, describe, is_described
from dfrot.arch.llama import LLAMA
from dfrot.draft.models.base import Draft
from dfrot.draft.models.dflash import DFlashDraft
from dfrot.draft.models.dflash_blocks import BlockLayer
from dfrot.draft.models.dream import DreamDraft
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.generation.target import Target
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.rotation.hadamard import hadamard_matrix

QKV, ATTENTION = ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORM_OF_ATTENTION, NORM_OF_MLP = "input_layernorm", "post_attention_layernorm"  # in drafts
STREAM_GROWTH = 10.0  # of a residual stream from the first to a deep layer, about: so that both count in their sum
EMBEDDING_SCALE = 0.3  # of the random weights by which eagle3 reads the embedding, beside those copied for the feature


def dense(linear: nn.Module) -> Tensor:
    """The weight float32 [N, K] by which a linear of a loaded target multiplies its unrotated input."""
    if isinstance(linear, QuantLinear):
        weight: Tensor = linear.stored_weight().dequantize(torch.float32)
    elif isinstance(linear, Fp4Linear):
        weight = linear.dequantized()
    else:
        weight = linear.weight.detach().float()  # type: ignore[operator]
    spec = getattr(getattr(linear, "plan", None), "hadamard", None)
    if spec is None:
        return weight
    blocks = weight.reshape(weight.shape[0], -1, spec.block)  # y = (x H) W^T = x (W H^T)^T
    return (blocks @ hadamard_matrix(spec).float().T).reshape(weight.shape)


@torch.no_grad()
def init_from_target(draft: Draft, target: Target) -> list[str]:
    """Copy the weights that fit. Returns the names of the parameters that were set: none for a draft of another width
    or a target of another layout."""
    config = draft.config
    if config.hidden_size != config.target_hidden_size:
        return []
    copied: list[str] = []
    spec = _spec(target)
    final_norm, offset = getattr(target.decoder, "norm", None), spec.final_norm.offset
    if isinstance(draft, DreamDraft):
        _copy_block(draft.first, target.layers[0], spec, "layers.0", copied)
        for number, block in enumerate(draft.final):
            index = len(target.layers) - len(draft.final) + number
            _copy_block(block, target.layers[index], spec, f"layers.{2 + number}", copied)
        _copy_norm(draft.norm, final_norm, offset, "norm", copied)
        if draft.fc is not None:
            _read_deepest(draft.fc, config.hidden_size)
        if draft.joins:
            draft.first.mlp.down_proj.weight.mul_(STREAM_GROWTH)
    if isinstance(draft, DFlashDraft):
        _init_blocks(draft, target, spec, copied)
        _copy_norm(draft.norm, final_norm, offset, "norm", copied)
    if isinstance(draft, Eagle3Draft):
        _copy_block(draft.layer, target.layers[-1], spec, "layers.0", copied)
        size = config.hidden_size
        _read_deepest(draft.fc, size)
        _copy_norm(draft.norm, final_norm, offset, "norm", copied)
    _init_head(draft, target, copied)
    return copied


def _init_head(draft: Draft, target: Target, copied: list[str]) -> None:
    """A draft's own head, if it has one, from the target's rows of its tokens."""
    own, weight = getattr(draft, "lm_head", None), getattr(target.head_module, "weight", None)
    if own is None or not isinstance(weight, Tensor):
        return
    if draft.token_ids is not None:
        weight = weight[draft.token_ids]
    if weight.shape == own.weight.shape:
        own.weight.copy_(weight)
        copied.append("lm_head.weight")


def _init_blocks(draft: DFlashDraft, target: Target, spec: ArchSpec, copied: list[str]) -> None:
    """The layers of a DFlash draft from the target's last ones."""
    _read_deepest(draft.fc, draft.config.hidden_size)
    first = len(target.layers) - len(draft.layers)
    for number, block in enumerate(draft.layers):
        if first + number < 0:  # a draft of more layers than its target
            continue
        assert isinstance(block, BlockLayer)
        layer = target.layers[first + number]
        _copy_block(block, layer, spec, f"layers.{number}", copied)
        attention = getattr(layer, "self_attn", None)
        for name in ("q_norm", "k_norm"):  # of targets that have them
            norm = getattr(attention, name, None)
            _copy_norm(getattr(block.self_attn, name), norm, 0.0, f"layers.{number}.self_attn.{name}", copied)


def _read_deepest(fc: nn.Linear, size: int) -> None:
    """Begin with the deepest of the features side by side, and a little of all."""
    fc.weight[:, -size:] += torch.eye(size)


def _spec(target: Target) -> ArchSpec:
    """The description of the target's blocks; of an unknown architecture, the commonest one's."""
    config = target.model.config.to_dict()
    return describe(config).spec if is_described(config) else LLAMA


def _copy_block(block: nn.Module, layer: nn.Module, spec: ArchSpec, name: str, copied: list[str]) -> None:
    """From a target's layer to the draft's block called `name`."""
    for part, linears in (("self_attn", ATTENTION), ("mlp", MLP)):
        for linear in linears:
            path = f"{part}.{linear}"
            try:
                weight = dense(layer.get_submodule(path))
            except AttributeError:  # a layer of another layout
                continue
            own: Tensor = block.get_submodule(path).weight  # type: ignore[assignment]
            if _copy_linear(own, weight, linear):
                copied.append(f"{name}.{path}.weight")
    for norm in spec.norms:
        if not norm.feeds:  # a norm behind what writes to the residual stream, which drafts do not have
            continue
        own_norm = NORM_OF_ATTENTION if norm.feeds[0].startswith("self_attn") else NORM_OF_MLP
        if own_norm == NORM_OF_ATTENTION and hasattr(block, "hidden_norm"):  # eagle3: the norm of features
            own_norm = "hidden_norm"
        layer_norm = getattr(layer, norm.name, None)
        _copy_norm(getattr(block, own_norm), layer_norm, norm.offset, f"{name}.{own_norm}", copied)


def _copy_linear(own: Tensor, weight: Tensor, linear: str) -> bool:
    """Copy as much of a weight [N, K] as fits. Returns False where nothing was copied."""
    # eagle3's attention reads twice the width, the embedding before the feature: copy into the last columns
    extra = own.shape[1] - weight.shape[1] if linear in QKV else 0
    rows, columns = min(own.shape[0], weight.shape[0]), min(own.shape[1], weight.shape[1])
    if extra < 0 or (linear in ATTENTION and rows != weight.shape[0]):
        return False
    if extra:
        own[:, :extra] *= EMBEDDING_SCALE
    own[:rows, extra : extra + columns] = weight[:rows, :columns]
    return True


def _copy_norm(own: Any, theirs: Any, offset: float, name: str, copied: list[str]) -> None:
    weight = getattr(theirs, "weight", None)
    if isinstance(weight, Tensor) and weight.shape == own.weight.shape:
        own.weight.copy_(weight + offset)
        copied.append(f"{name}.weight")
