"""A head start: the draft's blocks begin as blocks of the target, in the target's (rotated) basis.

The first block copies the target's first, the last block its last: behind them the target's head says something
sensible from the first step on, and training need not find the vocabulary's geometry again. Weights are
dequantized, and the online rotation of the MLP's inner activations, which the draft does not do, is folded back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.draft.base import Draft
from dfrot.draft.dream import DreamDraft
from dfrot.draft.eagle3 import Eagle3Draft
from dfrot.draft.target import Target
from dfrot.quant.linear import QuantLinear
from dfrot.rotation.hadamard import matrix

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


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
    return (blocks @ matrix(spec).float().T).reshape(weight.shape)


@torch.no_grad()
def warm_start(draft: Draft, target: Target) -> list[str]:
    """Copy what fits; returns the names of the parameters that were set (none for another width or layout)."""
    config = draft.config
    if config.hidden_size != config.target_hidden_size:
        return []
    done: list[str] = []
    if isinstance(draft, DreamDraft):
        _block(draft.first, target.layers[0], "layers.0", done)
        for number, block in enumerate(draft.final):
            index = len(target.layers) - len(draft.final) + number
            _block(block, target.layers[index], f"layers.{2 + number}", done)
        _norm(draft.norm, getattr(target.decoder, "norm", None), "norm", done)
    if isinstance(draft, Eagle3Draft):
        _block(draft.layer, target.layers[-1], "layers.0", done)
        size = config.hidden_size
        draft.fc.weight[:, -size:] += torch.eye(size)  # the deepest of the three features, and a little of all
        _norm(draft.norm, getattr(target.decoder, "norm", None), "norm", done)
        weight = getattr(target.head_module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == draft.lm_head.weight.shape:
            draft.lm_head.weight.copy_(weight)
            done.append("lm_head.weight")
    return done


def _block(own: nn.Module, layer: nn.Module, name: str, done: list[str]) -> None:
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
    for norm in NORMS:
        mine_norm = "hidden_norm" if norm == "input_layernorm" and hasattr(own, "hidden_norm") else norm
        _norm(getattr(own, mine_norm), getattr(layer, norm, None), f"{name}.{mine_norm}", done)


def _norm(own: Any, theirs: Any, name: str, done: list[str]) -> None:
    weight = getattr(theirs, "weight", None)
    if isinstance(weight, Tensor) and weight.shape == own.weight.shape:
        own.weight.copy_(weight)
        done.append(f"{name}.weight")
