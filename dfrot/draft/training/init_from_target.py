"""A head start: the draft's blocks begin as blocks of the target, in the target's (rotated) basis.

The first block copies the target's first, the last block its last: behind them the target's head says something
sensible from the first step on, and training need not find the vocabulary's geometry again. Weights are
dequantized, and the online rotation of the MLP's inner activations, which the draft does not do, is folded back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import ArchSpec, describe, is_described
from dfrot.arch.llama import LLAMA
from dfrot.draft.models.base import Draft
from dfrot.draft.models.dream import DreamDraft
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.generation.target import Target
from dfrot.quant.linear import QuantLinear
from dfrot.rotation.hadamard import hadamard_matrix

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = {True: "input_layernorm", False: "post_attention_layernorm"}  # of the draft: whether attention reads it


def dense(linear: nn.Module) -> Tensor:
    """The weight float32 [N, K] by which a linear of a loaded target multiplies its unrotated input."""
    if isinstance(linear, QuantLinear):
        weight: Tensor = linear.weight().dequantize(torch.float32)
    else:
        weight = linear.weight.detach().float()  # type: ignore[operator]
    spec = getattr(getattr(linear, "plan", None), "hadamard", None)
    if spec is None:
        return weight
    blocks = weight.reshape(weight.shape[0], -1, spec.block)  # y = (x H) W^T = x (W H^T)^T
    return (blocks @ hadamard_matrix(spec).float().T).reshape(weight.shape)


@torch.no_grad()
def init_from_target(draft: Draft, target: Target) -> list[str]:
    """Copy what fits; returns the names of the parameters that were set (none for another width or layout)."""
    config = draft.config
    if config.hidden_size != config.target_hidden_size:
        return []
    done: list[str] = []
    spec = _spec(target)
    final, offset = getattr(target.decoder, "norm", None), spec.final_norm.offset
    if isinstance(draft, DreamDraft):
        _block(draft.first, target.layers[0], spec, "layers.0", done)
        for number, block in enumerate(draft.final):
            index = len(target.layers) - len(draft.final) + number
            _block(block, target.layers[index], spec, f"layers.{2 + number}", done)
        _norm(draft.norm, final, offset, "norm", done)
    if isinstance(draft, Eagle3Draft):
        _block(draft.layer, target.layers[-1], spec, "layers.0", done)
        size = config.hidden_size
        draft.fc.weight[:, -size:] += torch.eye(size)  # the deepest of the three features, and a little of all
        _norm(draft.norm, final, offset, "norm", done)
        weight = getattr(target.head_module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == draft.lm_head.weight.shape:
            draft.lm_head.weight.copy_(weight)
            done.append("lm_head.weight")
    return done


def _spec(target: Target) -> ArchSpec:
    """The description of the target's blocks; of an unknown architecture, the commonest one's."""
    config = target.model.config.to_dict()
    return describe(config).spec if is_described(config) else LLAMA


def _block(own: nn.Module, layer: nn.Module, spec: ArchSpec, name: str, done: list[str]) -> None:
    for part, names in (("self_attn", ATTENTION), ("mlp", MLP)):
        for linear in names:
            path = f"{part}.{linear}"
            try:
                weight = dense(layer.get_submodule(path))
            except AttributeError:  # a layer of another layout
                continue
            mine: Tensor = own.get_submodule(path).weight  # type: ignore[assignment]
            # eagle3's attention reads twice the width, the feature behind the embedding: copy into the last columns
            wide = mine.shape[1] - weight.shape[1] if linear in ATTENTION[:3] else 0
            rows, columns = min(mine.shape[0], weight.shape[0]), min(mine.shape[1], weight.shape[1])
            if wide < 0 or (linear in ATTENTION and rows != weight.shape[0]):
                continue
            if wide:
                mine[:, :wide] *= 0.3
            mine[:rows, wide : wide + columns] = weight[:rows, :columns]
            done.append(f"{name}.{path}.weight")
    for norm in spec.norms:
        if not norm.feeds:  # behind what writes: the draft has none there
            continue
        mine_norm = NORMS[norm.feeds[0].startswith("self_attn")]
        mine_norm = "hidden_norm" if mine_norm == NORMS[True] and hasattr(own, "hidden_norm") else mine_norm
        _norm(getattr(own, mine_norm), getattr(layer, norm.name, None), norm.offset, f"{name}.{mine_norm}", done)


def _norm(own: Any, theirs: Any, offset: float, name: str, done: list[str]) -> None:
    weight = getattr(theirs, "weight", None)
    if isinstance(weight, Tensor) and weight.shape == own.weight.shape:
        own.weight.copy_(weight + offset)
        done.append(f"{name}.weight")
