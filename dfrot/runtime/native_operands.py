"""The operands of the native decoder, gathered from a loaded model by its architecture description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.quant.linear import QuantLinear
from dfrot.runtime.kv_cache import KVSpec
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.whole_blocks.decoder import HEAD_DIM, BlockOperand, Decoder, DecoderShape, LinearOperand

ANGLES_FIXED = {"default", "linear", "llama3", "yarn", "proportional"}  # RoPE whose angles depend on the position alone


class NotServable(Exception):
    """Why the native decoder cannot serve; never leaves dfrot/runtime."""


def build_decoder(base: Any, arch: BoundArch, kv: KVSpec | None, sinks: int, hidden: Tensor) -> Decoder:
    """Raises Unfit where the model is not a stack of pre-norm blocks with gated MLPs on packed 4-bit weights."""
    config, spec = base.config, arch.spec
    if hidden.device.type != "cpu" or kv is None:
        raise NotServable(f"the model is on {hidden.device}")
    if spec.experts is not None:
        raise NotServable("a mixture of experts")
    if arch.scalar("embed") != 1 or arch.scalar("residual") != 1:
        raise NotServable("embeddings or residuals times a constant")
    if any(norm.late or norm.offset for norm in (*spec.norms, spec.final_norm)):
        raise NotServable("norms behind the residual writers")
    if getattr(config, "hidden_act", None) != "silu":
        raise NotServable(f"activation {getattr(config, 'hidden_act', None)!r}")
    if arch.head_dim > HEAD_DIM or arch.head_dim % 2:
        raise NotServable(f"heads of {arch.head_dim} values")
    kind = getattr(base.rotary_emb, "rope_type", "default")
    if kind not in ANGLES_FIXED:
        raise NotServable(f"RoPE of type {kind!r}")
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        raise NotServable("positions of three dimensions")
    windows = {_window(config, layer) for layer in range(arch.n_layers)}
    if len(windows) != 1:
        raise NotServable("sliding windows in some layers only")
    places = _places(arch)
    scalings = {float(attention_of(base, arch, layer).scaling) for layer in range(arch.n_layers)}
    if len(scalings) != 1:
        raise NotServable("layers that scale their scores differently")
    cos = base.rotary_emb(hidden[:1, :1], torch.zeros(1, 1, dtype=torch.int64))[0]
    if cos.shape[-1] != arch.head_dim:
        raise NotServable("RoPE on a part of each head")
    r3 = None if kv.r3 is None else (kv.r3.base(), kv.r3.block)
    shape = DecoderShape(
        hidden.dtype, arch.hidden, arch.n_heads, arch.n_kv_heads, arch.head_dim, arch.intermediate,
        windows.pop(), sinks, float(config.rms_norm_eps), scalings.pop(), kv.bits, kv.symmetric, kv.clip, r3,
    )  # fmt: skip
    blocks = [_block(base, arch, layer, places) for layer in range(arch.n_layers)]
    return Decoder(shape, blocks, module_of(base, spec.final_norm.name).weight)


def _places(arch: BoundArch) -> tuple[Linear, ...]:
    """q, k, v, o, gate, up, down among the description's linears, by what they read and write."""

    def found(reads: str, writes: str, rows: str | None = None) -> list[Linear]:
        every = [one for one in arch.spec.linears if (one.reads, one.writes) == (reads, writes)]
        return [one for one in every if rows is None or one.rows == rows]

    q, k = found("residual", "qk", "q"), found("residual", "qk", "kv")
    v, o = found("residual", "v"), found("v", "residual")
    gate_up, down = found("residual", "mlp"), found("mlp", "residual")
    if [len(part) for part in (q, k, v, o, gate_up, down)] != [1, 1, 1, 1, 2, 1] or len(arch.spec.norms) != 2:
        raise NotServable("a block of another form")
    first, second = arch.spec.norms
    attention, mlp = (q[0], k[0], v[0]), tuple(gate_up)  # the gate is declared first
    if {one.name for one in attention} != set(first.feeds) or {one.name for one in mlp} != set(second.feeds):
        raise NotServable("norms that feed other linears")
    return (*attention, o[0], *mlp, down[0])


def module_of(base: nn.Module, name: str) -> Any:
    """A module by its name in the checkpoint, which starts at the causal language model."""
    return base.get_submodule(name.removeprefix(f"{_ROOT}."))


_ROOT = "model"  # where transformers keeps the part below the head


def attention_of(base: nn.Module, arch: BoundArch, layer: int) -> Any:
    """The attention module of one layer."""
    name = next(one.name for one in arch.spec.linears if one.enters("qk"))
    return module_of(base, arch.full(layer, name.rpartition(".")[0]))


def _window(config: Any, layer: int) -> int:
    """Positions that a row of this layer sees, itself included; 0: all."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    sliding = kinds[layer] == "sliding_attention" if kinds else window is not None
    if kinds and kinds[layer] not in ("sliding_attention", "full_attention"):
        raise NotServable(f"attention of type {kinds[layer]!r}")
    return int(window) if sliding and window else 0


def _block(base: nn.Module, arch: BoundArch, layer: int, places: Sequence[Linear]) -> BlockOperand:
    first, second = (module_of(base, arch.full(layer, norm.name)).weight for norm in arch.spec.norms)
    gains = [module_of(base, arch.full(layer, name)).weight for name in arch.spec.head_norms]
    linears = tuple(_linear(module_of(base, arch.full(layer, one.name)), arch.full(layer, one.name)) for one in places)
    for group in (linears[:3], linears[4:6]):
        if len({(one.bits, one.symmetric, one.clip, one.weight.group) for one in group}) != 1:
            raise NotServable("linears that quantize one input differently")
    q_norm, k_norm = gains if len(gains) == 2 else (None, None)
    return BlockOperand(first, second, q_norm, k_norm, linears)


def _linear(module: Any, name: str) -> LinearOperand:
    if type(module) is not QuantLinear:
        raise NotServable(f"{name} is not a packed linear")
    plan = module.plan
    weight = prepared(module)
    if weight is None:
        raise NotServable(f"{name}: {plan.w_bits}-bit codes in groups of {plan.group} have no tiled layout")
    spec = plan.hadamard
    base = module.hadamard_base
    return LinearOperand(weight, module.bias, plan.a_bits, plan.a_sym, plan.a_clip, base, spec.block if spec else 0)


def prepared(module: QuantLinear) -> PreparedWeight | None:
    """The module's weight in tiles; None where it has no such layout."""
    return module.prepared
