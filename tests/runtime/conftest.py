"""Tiny random checkpoints of every architecture, and a small packer that turns them into dfq folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dfrot_kernels  # noqa: F401
from dfrot.arch import BoundArch, open_described
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.files import read_json, write_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import key_shift_tensors
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.rotation.hadamard import hadamard_matrix
from dfrot_kernels.layouts import PackedWeight

VOCAB = 256
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,  # 12 x 8: not a power of two
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
GEMMA3 = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "attention_bias": True},
    "mistral": {**COMMON, "sliding_window": 16, "head_dim": 32},
    "qwen2": COMMON,
    "phi3": {**COMMON, "sliding_window": None},
    "granite": {
        **COMMON,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    },
    "qwen3": {**COMMON, "head_dim": 32},
    "olmo2": COMMON,
    "gemma2": {
        **COMMON,
        "head_dim": 32,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 6.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {**COMMON, "head_dim": 32, "sliding_window": 16, "layer_types": GEMMA3, "tie_word_embeddings": True},
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**COMMON, "num_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": {**COMMON, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
}


def build(
    folder: Path, model_type: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random checkpoint whose logits are far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes}), dtype=dtype
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def grid(weight: Tensor, plan: LinearPlan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round to nearest: codes uint8 [N, K], scale bfloat16 [N, G], zero uint8 [N, G] or None."""
    rows, group = weight.shape[0], plan.group or weight.shape[1]
    blocks = weight.float().reshape(rows, -1, group)
    top = 2**plan.w_bits - 1
    if plan.w_sym:
        half = 2 ** (plan.w_bits - 1)
        scale = (blocks.abs().amax(-1) / (half - 1)).bfloat16()
        codes = (blocks / scale.float()[..., None]).round().clamp(-half, half - 1) + half
        return codes.to(torch.uint8).reshape(weight.shape), scale, None
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scale = ((high - low) / top).bfloat16()
    zero = (-low / scale.float()).round().clamp(0, top)
    codes = ((blocks / scale.float()[..., None]).round() + zero[..., None]).clamp(0, top)
    return codes.to(torch.uint8).reshape(weight.shape), scale, zero.to(torch.uint8)


def _tensors(checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig) -> dict[str, Tensor]:
    plans = plan_linears(arch, replace(config, fake=False))
    generator = torch.Generator().manual_seed(3)
    out = {name: torch.randn(shape, generator=generator) for name, shape in key_shift_tensors(arch, config).items()}
    for name in checkpoint.entries:
        tensor = checkpoint.read(name)
        plan = plans.get(name.removesuffix(".weight"))
        if plan is None or not name.endswith(".weight"):
            out[name] = tensor
            continue
        if plan.hadamard is not None:
            h = hadamard_matrix(plan.hadamard)
            blocks = tensor.double().reshape(tensor.shape[0], -1, plan.hadamard.block)
            tensor = (blocks @ h).reshape(tensor.shape).to(tensor.dtype)
        if not plan.packed:
            out[name] = tensor
            continue
        codes, scale, zero = grid(tensor, plan)
        packed = PackedWeight.from_codes(codes, scale, zero, plan.w_bits, plan.group)
        if config.fake:
            out[name] = packed.dequantize(torch.float32)
            continue
        out[f"{plan.name}.weight_packed"] = packed.packed
        out[f"{plan.name}.weight_scale"] = scale
        if zero is not None:
            out[f"{plan.name}.weight_zero"] = zero
    return out


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(folder, plan)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    write_json(folder / "config.json", config)
    return folder


def pack(source: Path, folder: Path, config: DfqConfig) -> Path:
    """Write `source` (a 16-bit folder) as the dfq folder that `config` describes."""
    checkpoint, arch = open_described(source)
    entry = json.loads(json.dumps(config.to_dict()))
    tensors = _tensors(checkpoint, arch, config)
    for file in source.glob("tokenizer*"):
        (folder).mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    return write(folder, {**read_json(source / "config.json"), "quantization_config": entry}, tensors)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file: test modules cannot import a conftest."""
    return SimpleNamespace(build=build, pack=pack, write=write, configs=CONFIGS)
