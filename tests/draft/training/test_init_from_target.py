"""Initialising a draft from its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch

from dfrot.draft.models.build import build
from dfrot.draft.training.init_from_target import STREAM_GROWTH, dense, init_from_target
from dfrot.generation.target import Target

Get = Callable[..., Target]


def test_blocks_are_copied(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    draft = kit.random_draft().requires_grad_(True)
    copied = init_from_target(draft, target)
    assert len(copied) == 19
    layer = target.layers[0]
    assert torch.equal(draft.first.mlp.up_proj.weight, layer.mlp.up_proj.weight)
    x = torch.randn(2, 96)
    assert torch.allclose(dense(layer.mlp.down_proj) @ x.T, layer.mlp.down_proj(x).T, atol=1e-5)


def test_a_draft_that_reads_layers_begins_with_the_deepest(targets: Get, kit: SimpleNamespace) -> None:
    """Its first block writes as much as a deep layer's stream holds, about."""
    target, plain = targets("llama", (1, 2, 3)), kit.random_draft().requires_grad_(True)
    draft = kit.random_draft("dream-layers").requires_grad_(True)
    before = draft.fc.weight.detach().clone()
    assert init_from_target(draft, target) == [*init_from_target(plain, target), "lm_head.weight"]
    size = draft.config.hidden_size
    trimmed = build(replace(draft.config, draft_vocab_size=3))
    trimmed.choose_tokens(torch.tensor([1, 5, 9]))
    init_from_target(trimmed, target)
    assert torch.equal(trimmed.lm_head.weight, target.head_module.weight[[1, 5, 9]])
    assert torch.equal(draft.fc.weight[:, : 2 * size], before[:, : 2 * size])
    assert torch.allclose(draft.fc.weight[:, 2 * size :] - before[:, 2 * size :], torch.eye(size), atol=1e-6)
    assert torch.equal(draft.first.mlp.down_proj.weight, STREAM_GROWTH * plain.first.mlp.down_proj.weight)


def test_dense_weights_take_unrotated_inputs() -> None:
    """A rotated linear's weight is rotated back, packed or not."""
    from dfrot.quant.modules.dense_linear import DenseLinear, QuantLinear
    from dfrot.quant.plan import LinearPlan
    from dfrot.rotation.hadamard import hadamard_plan
    from dfrot_kernels.layouts import PackedWeight

    x, spec = torch.randn(5, 96), hadamard_plan(96)
    rotated = DenseLinear(
        LinearPlan("d", 64, 96, False, 16, 0, True, 16, False, 1.0, spec), False, torch.float32, torch.float32
    )
    rotated.weight.data.normal_()
    rotated.prepare("d")
    assert torch.allclose(x @ dense(rotated).T, rotated(x), atol=1e-4)
    packed = QuantLinear(LinearPlan("p", 64, 96, True, 4, 0, True, 16, False, 1.0, spec), False, torch.float32)
    codes = torch.randint(0, 16, (64, 96), dtype=torch.uint8)
    stored = PackedWeight.from_codes(codes, torch.full((64, 1), 0.25).bfloat16(), None, 4, 0)
    packed.load_state_dict({"weight_packed": stored.packed, "weight_scale": stored.scale})
    packed.prepare("p")
    assert torch.allclose(x @ dense(packed).T, packed(x), atol=1e-2)
