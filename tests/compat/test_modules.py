"""What dfrot/runtime reads off the modules of loaded models, by name."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import ARCHS, describe

TYPES = sorted(set(ARCHS) - {"granite", "phi3"})  # these two need sizes of their own and add nothing here


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_block_runs_by_itself(build_model: Any, model_type: str, ids: Tensor) -> None:
    """BlockRunner calls a deep copy of a block with angles that the rotary module computes from positions."""
    model = build_model(model_type, attn_implementation="eager" if model_type == "gemma2" else "sdpa")
    base, config = model.model, model.config
    rotary = type(base.rotary_emb)(config=config)
    hidden, positions = torch.randn(1, 5, 32), torch.arange(5)[None]
    by_type = "layer_type" in inspect.signature(rotary.forward).parameters
    angles = rotary(hidden, positions, *((config.layer_types[0],) if by_type else ()))
    assert angles[0].shape == (1, 5, 8)
    block = copy.deepcopy(base.layers[0])
    configs = {id(m.config) for m in block.modules() if hasattr(m, "layer_idx") and hasattr(m, "config")}
    assert len(configs) == 1
    assert id(config) not in configs, "a copied block has a configuration of its own"
    out = block(
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=angles,
        past_key_values=None,
        use_cache=False,
    )
    out = out[0] if isinstance(out, tuple) else out
    assert out.shape == hidden.shape
    assert not list(block.named_buffers())


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "qwen3_moe"])
@torch.no_grad()
def test_a_mixture_merges_its_experts_and_routes(build_model: Any, model_type: str, ids: Tensor) -> None:
    """experts(hidden [T, d], index [T, k], weights [T, k]) with an `act_fn`; router -> (scores [T, E], _, index)."""
    model = build_model(model_type)
    arch = describe(model.config.to_dict())
    assert arch.spec.experts is not None
    experts = model.get_submodule(arch.module(arch.full(0, arch.spec.experts.container)))
    router = model.get_submodule(arch.module(arch.full(0, arch.spec.routers[0].name)))
    assert callable(experts.act_fn)
    calls: list[Any] = []
    experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    router.register_forward_hook(lambda _, args, output: calls.append(output))
    model(ids)
    (scores, _, index), (hidden, chosen, weights) = calls
    assert scores.shape == (20, 4)
    assert hidden.shape == (20, 32)
    assert torch.equal(index, chosen)
    assert chosen.shape == weights.shape == (20, 2)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_what_the_native_decoder_reads(build_model: Any, model_type: str) -> None:
    model = build_model(model_type)
    base = model.base_model
    assert base is model.get_decoder() is model.model
    assert isinstance(base.layers[0].self_attn.scaling, float)
    assert getattr(base.rotary_emb, "rope_type", "default") == "default"
    assert base.config is model.config
    assert base.config.hidden_act == "silu"
    assert base.config.rms_norm_eps > 0
    assert not base.config.output_hidden_states
    cos, sin = base.rotary_emb(torch.zeros(1, 1, 32), torch.arange(7)[None])
    assert cos.shape == sin.shape == (1, 7, 8)


def test_tied_parameters_are_named(build_model: Any) -> None:
    """`all_tied_weights_keys` names tensors that a checkpoint may leave out."""
    tied = build_model(tie_word_embeddings=True)
    assert "lm_head.weight" in set(tied.all_tied_weights_keys)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert not set(build_model(tie_word_embeddings=False).all_tied_weights_keys)


def test_torch_keeps_hooks_in_these_tables() -> None:
    """The native decoder watches them: empty tables mean that no module has to run."""
    from torch.nn.modules import module as torch_module

    linear = nn.Linear(2, 2)
    tables = [linear._forward_hooks, linear._forward_pre_hooks]
    tables += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
    assert not any(tables)
    handles = [linear.register_forward_hook(lambda *_: None), linear.register_forward_pre_hook(lambda *_: None)]
    handles.append(torch_module.register_module_forward_hook(lambda *_: None))
    handles.append(torch_module.register_module_forward_pre_hook(lambda *_: None))
    assert all(tables)
    for handle in handles:
        handle.remove()
    assert not any(tables)
