"""The operands of the native decoder, gathered from a loaded model by its architecture description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.arch.space import Size, Space
from dfrot.quant.key_shift import TENSOR as KEY_SHIFT
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import FULL
from dfrot.runtime.packed_states import KVSpec
from dfrot_kernels.prepared import PreparedWeight
from dfrot_kernels.whole_blocks.decoder import HEAD_DIM, BlockOperand, Decoder, DecoderShape, LinearOperand

POSITION_ONLY_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}
"""Types of RoPE whose angles depend on the position alone; those of others depend on the length of the text too."""
_ROOT = "model"  # where transformers keeps the part below the head


class NotServable(Exception):
    """Why the native decoder cannot serve a model or a call; never leaves dfrot/runtime."""


def build_decoder(
    base: Any, arch: BoundArch, kv: KVSpec | None, sinks: int, hidden: Tensor, exact: bool = False
) -> Decoder:
    """The native decoder of a loaded model.

    Args:
        base: the language model below its head.
        kv: how keys and values are stored.
        sinks: leading positions that stay exact.
        hidden: embeddings of a call; their dtype and device are the decoder's.
        exact: leave activations in 16 bits, as those of sinks are.

    Raises NotServable where the model is not a stack of pre-norm blocks with gated MLPs on packed 4-bit weights.
    """
    config, spec = base.config, arch.spec
    if hidden.device.type != "cpu" or kv is None:
        raise NotServable(f"the model is on {hidden.device}")
    _check_blocks(config, arch)
    _check_rope(base)
    windows = {_window(config, layer) for layer in range(arch.n_layers)}
    if len(windows) != 1:
        raise NotServable("sliding windows in some layers only")
    linears = _block_linears(arch)
    scalings = {float(attention_of(base, arch, layer).scaling) for layer in range(arch.n_layers)}
    if len(scalings) != 1:
        raise NotServable("layers that scale their scores differently")
    cos = base.rotary_emb(hidden[:1, :1], torch.zeros(1, 1, dtype=torch.int64))[0]
    if cos.shape[-1] != arch.head_dim:
        raise NotServable("RoPE on a part of each head")
    shape = DecoderShape(
        dtype=hidden.dtype,
        hidden=arch.hidden,
        heads=arch.n_heads,
        kv_heads=arch.n_kv_heads,
        head_dim=arch.head_dim,
        mlp=arch.intermediate,
        window=windows.pop(),
        sinks=sinks,
        eps=float(config.rms_norm_eps),
        scaling=scalings.pop(),
        kv_bits=kv.bits,
        kv_symmetric=kv.symmetric,
        kv_clip=kv.clip,
        r3=None if kv.r3 is None else (kv.r3.base(), kv.r3.block),
    )
    blocks = [_block_operand(base, arch, layer, linears) for layer in range(arch.n_layers)]
    if exact:
        blocks = [
            replace(block, linears=tuple(replace(linear, bits=FULL) for linear in block.linears)) for block in blocks
        ]
    return Decoder(shape, blocks, module_of(base, spec.final_norm.name).weight)


def _check_blocks(config: Any, arch: BoundArch) -> None:
    """Raise NotServable for blocks that compute something else than the native ones."""
    spec = arch.spec
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


def _check_rope(base: Any) -> None:
    """Raise NotServable for angles that a table by position cannot hold."""
    rope_type = getattr(base.rotary_emb, "rope_type", "default")
    if rope_type not in POSITION_ONLY_ROPE:
        raise NotServable(f"RoPE of type {rope_type!r}")
    if "mrope_section" in (getattr(base.config, "rope_parameters", None) or {}):
        raise NotServable("positions of three dimensions")


def _block_linears(arch: BoundArch) -> tuple[Linear, ...]:
    """q, k, v, o, gate, up, down among the description's linears, by what they read and write."""

    def select(reads: Space, writes: Space, rows: Size | None = None) -> list[Linear]:
        linears = [linear for linear in arch.spec.linears if (linear.reads, linear.writes) == (reads, writes)]
        return [linear for linear in linears if rows is None or linear.rows == rows]

    q = select(Space.RESIDUAL, Space.QUERY_KEY, Size.QUERIES)
    k = select(Space.RESIDUAL, Space.QUERY_KEY, Size.KEY_VALUES)
    v, o = select(Space.RESIDUAL, Space.VALUE), select(Space.VALUE, Space.RESIDUAL)
    gate_up, down = select(Space.RESIDUAL, Space.MLP), select(Space.MLP, Space.RESIDUAL)
    counts = [len(linears) for linears in (q, k, v, o, gate_up, down)]
    if counts != [1, 1, 1, 1, 2, 1] or len(arch.spec.norms) != 2:
        raise NotServable("a block of another form")
    first, second = arch.spec.norms
    attention, mlp = (q[0], k[0], v[0]), tuple(gate_up)  # the gate is declared first
    if {linear.name for linear in attention} != set(first.feeds) or {linear.name for linear in mlp} != set(
        second.feeds
    ):
        raise NotServable("norms that feed other linears")
    return (*attention, o[0], *mlp, down[0])


def name_in_base(name: str) -> str:
    """What a module or tensor of the checkpoint is called in the language model below its head."""
    return name.removeprefix(f"{_ROOT}.")


def module_of(base: nn.Module, name: str) -> Any:
    """A module of the language model by its name in the checkpoint."""
    return base.get_submodule(name_in_base(name))


def attention_of(base: nn.Module, arch: BoundArch, layer: int) -> Any:
    """The attention module of one layer."""
    return module_of(base, arch.attention(layer))


def _window(config: Any, layer: int) -> int:
    """Positions that a row of this layer sees, itself included; 0: all."""
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    sliding = layer_types[layer] == "sliding_attention" if layer_types else window is not None
    if layer_types and layer_types[layer] not in ("sliding_attention", "full_attention"):
        raise NotServable(f"attention of type {layer_types[layer]!r}")
    return int(window) if sliding and window else 0


def _block_operand(base: nn.Module, arch: BoundArch, layer: int, linears: Sequence[Linear]) -> BlockOperand:
    """The tensors of one block. linears: as `_block_linears` orders them."""
    first, second = (module_of(base, arch.full(layer, norm.name)).weight for norm in arch.spec.norms)
    gains = [module_of(base, arch.full(layer, name)).weight for name in arch.spec.head_norms]
    names = [arch.full(layer, linear.name) for linear in linears]
    operands = tuple(_linear_operand(module_of(base, name), name) for name in names)
    for same_input in (operands[:3], operands[4:6]):
        if len({(linear.bits, linear.symmetric, linear.clip, linear.weight.group) for linear in same_input}) != 1:
            raise NotServable("linears that quantize one input differently")
    q_norm, k_norm = gains if len(gains) == 2 else (None, None)
    shift = getattr(attention_of(base, arch, layer), KEY_SHIFT, None)
    return BlockOperand(first, second, q_norm, k_norm, operands, shift)


def _linear_operand(module: Any, name: str) -> LinearOperand:
    if type(module) is not QuantLinear:
        raise NotServable(f"{name} is not a packed linear")
    plan = module.plan
    weight: PreparedWeight | None = module.prepared
    if weight is None:
        raise NotServable(f"{name}: {plan.w_bits}-bit codes in groups of {plan.group} have no tiled layout")
    spec = plan.hadamard
    base = module.hadamard_base
    return LinearOperand(weight, module.bias, plan.a_bits, plan.a_sym, plan.a_clip, base, spec.block if spec else 0)
