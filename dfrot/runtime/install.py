"""Turning a freshly built model into a dfq model, before and after its weights are loaded.

The model is transformers' or a described one (dfrot/runtime/described)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfrot.arch import BoundArch, describe
from dfrot.arch.bound import ROTARY_TABLE
from dfrot.checkpoint import TensorEntry, read_header
from dfrot.compat.attention import default_implementation, implementation, set_implementation
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant import resets
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import key_shift_tensors
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.embedding import QuantEmbedding
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.modules.rotated_linear import RotatedLinear
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.runtime import attention
from dfrot.runtime.described.modules import DescribedModel
from dfrot.runtime.experts import Experts, install_experts
from dfrot.runtime.forward_hooks import ForwardHooks
from dfrot.runtime.native_decoder import attach_native_decoder
from dfrot.runtime.native_operands import name_in_base
from dfrot.runtime.packed_states import KVSpec
from dfrot.runtime.softcap import softcap_of

_PACKED_SUFFIXES = (".weight_packed", ".weight_zero", ".weight_scale", ".weight_second", ".weight_global_scale")


def _bound_arch(model: Any) -> BoundArch:
    """The description of a transformers model. Raises UnsupportedError for a model without head."""
    arch = describe(model.config.to_dict())
    if not hasattr(model, arch.spec.head.name):
        raise UnsupportedError(
            f"{type(model).__name__}: dfq checkpoints are causal language models; load with AutoModelForCausalLM"
        )
    return arch


def _read_headers(files: Sequence[str] | None) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint's files, by stored name."""
    if not files:
        raise UnsupportedError("a dfq checkpoint is loaded from its folder, not from a state dict")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise UnsupportedError(f"{file}: dfq reads safetensors only", file=file)
        entries.update(read_header(Path(file)))
    return entries


def _new_linear(plan: LinearPlan, old: nn.Module, entry: TensorEntry | None, dtype: torch.dtype) -> nn.Module:
    """Our module in place of `old`. entry: the stored weight whose dtype a dense one keeps; None: the model's dtype."""
    bias = getattr(old, "bias", None) is not None
    if plan.packed:
        return (QuantLinear if plan.number_format == INTEGERS else Fp4Linear)(plan, bias, dtype)
    stored = entry.dtype if entry is not None and entry.dtype.is_floating_point else dtype
    return DenseLinear(plan, bias, dtype, stored)


def _new_embedding(plan: LinearPlan, old: nn.Module, arch: BoundArch, dtype: torch.dtype) -> nn.Module:
    """Our module in place of the embedding `old`. Some architectures scale in there, others in the model."""
    return QuantEmbedding(plan, dtype, arch.scalar("embed") if hasattr(old, "embed_scale") else 1.0)


def replace_linears(model: Any, config: DfqConfig, files: Sequence[str] | None) -> None:
    """Replace the linears, and the embedding, that `config` touches by ours, then compare the files with the model's
    tensors.

    Raises InputError naming the first missing, unexpected or malformed tensor and its file."""
    arch = _bound_arch(model)
    where = str(Path(files[0]).parent / "config.json") if files else "config.json"
    entries = {arch.stored(name): entry for name, entry in _read_headers(files).items()}
    install_experts(model, arch, model.dtype)
    for name, plan in plan_linears(arch, config, where).items():
        module = arch.module(name)
        if plan.lookup:
            if plan.packed:  # a simulated table is an ordinary one
                model.set_submodule(module, _new_embedding(plan, model.get_submodule(module), arch, model.dtype))
            continue
        entry = entries.get(f"{name}.weight")
        # a simulated weight lies on a grid that the model's dtype may not hold: keep the stored one
        stored = entry if config.fake and plan.w_bits != FULL else None
        model.set_submodule(module, _new_linear(plan, model.get_submodule(module), stored, model.dtype))
    for name, shape in key_shift_tensors(arch, config).items():
        attention_name, _, tensor = arch.module(name).rpartition(".")
        model.get_submodule(attention_name).register_buffer(tensor, torch.empty(shape, dtype=torch.float32))
    check_tensors(model, arch, entries, Path(files[0]).parent if files else Path())


def dtypes_of_renamed(model: Any) -> dict[str, torch.dtype]:
    """The dtypes that parameters shall have which are stored under another name: transformers (5.20) loads a tensor
    that it renames in its stored dtype."""
    arch = _bound_arch(model)
    return {name: parameter.dtype for name, parameter in model.named_parameters() if arch.stored(name) != name}


def check_tensors(model: Any, arch: BoundArch, entries: dict[str, TensorEntry], folder: Path) -> None:
    """Every tensor of the model must be in the files with its shape and kind of dtype, and no other.

    entries: the files' tensors under the names of the description. Raises InputError otherwise."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    expected = {arch.stored(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in expected.items():
        entry = entries.get(name)
        if entry is None:
            if arch.module(name) in tied:
                continue
            raise InputError(
                f"{folder}: tensor {name} is missing; the checkpoint is incomplete, make it again",
                file=folder,
                tensor=name,
            )
        if entry.shape != tuple(tensor.shape):
            raise InputError(
                f"{entry.file}: tensor {name}: shape {list(entry.shape)}, "
                f"config.json needs {list(tensor.shape)}; make the checkpoint again",
                file=entry.file,
                tensor=name,
            )
        is_packed = name.endswith(_PACKED_SUFFIXES)
        if (is_packed and entry.dtype != tensor.dtype) or entry.dtype.is_floating_point != tensor.is_floating_point():
            raise InputError(
                f"{entry.file}: tensor {name}: dtype {entry.dtype}, needs {tensor.dtype}", file=entry.file, tensor=name
            )
    for name, entry in entries.items():
        if name not in expected and not name.endswith(ROTARY_TABLE):
            raise InputError(
                f"{entry.file}: tensor {name} does not belong to this model; is config.json the right one?",
                file=entry.file,
                tensor=name,
            )


def base_model_of(model: Any, arch: BoundArch) -> Any:
    """The language model below its head, wherever it lies in `model`."""
    return model.base_model if arch.wrapper is None else model.get_submodule(arch.wrapper.inside)


def finish_model(model: Any, config: DfqConfig) -> None:
    """After loading: check scales, prepare the kernels' operands, attach KV cache, R3, sinks and the native decoder.

    Raises InputError for damaged scales, UnsupportedError for an attention function that cannot read the cache."""
    arch = _bound_arch(model)
    scheme = config.scheme
    kv = None
    if scheme is not None and scheme.kv_bits != FULL:
        kv = KVSpec(scheme.kv_bits, scheme.kv_sym, scheme.kv_clip, config.online.r3)
    base = base_model_of(model, arch)
    hooks = ForwardHooks(kv, config.sink_tokens, arch.n_layers, _key_shifts(base, arch, config))
    for name, module in model.named_modules():
        if isinstance(module, RotatedLinear):
            module.prepare(arch.stored(name))
            module.sinks = hooks.sinks if name != arch.spec.head.name else None
        elif isinstance(module, QuantEmbedding):
            module.prepare(arch.stored(name))
        elif isinstance(module, Experts):
            module.sinks = hooks.sinks
    if kv is not None:
        _use_packed_attention(model, base, arch, kv)
    use_capped_attention(base, arch)
    resets.attach(model, config.resets)
    hooks.attach(base)
    attach_native_decoder(model, base, arch, kv, hooks.sinks)
    model.dfq_runtime = hooks


def _key_shifts(base: Any, arch: BoundArch, config: DfqConfig) -> tuple[str, ...]:
    """Names of the loaded key shifts in `base`. Raises InputError for values that would spoil every score."""
    names = tuple(key_shift_tensors(arch, config))
    for name in names:
        if not bool(torch.isfinite(base.get_buffer(name_in_base(name))).all()):
            raise InputError(f"tensor {name} holds NaN or Inf; make the checkpoint again", tensor=name)
    return tuple(name_in_base(name) for name in names)


def _use_packed_attention(model: Any, base: Any, arch: BoundArch, kv: KVSpec) -> None:
    """Let the model run the attention function that reads the packed cache, with R3 on its queries."""
    if not isinstance(base, DescribedModel):
        attention.register_attention()
    default, chosen = default_implementation(base), implementation(base.config)
    capped = {"eager"} if softcap_of(base.config, arch, "attention") is not None else set()
    if chosen not in {default, attention.NAME} | capped:
        raise UnsupportedError(f"attn_implementation={chosen!r}: dfq models run on {default}; leave it out")
    if kv.r3 is not None:
        for layer in range(arch.n_layers):
            attention.rotate_queries(model.get_submodule(arch.module(arch.attention(layer))), kv.r3)
    set_implementation(base.config, attention.NAME)


def use_capped_attention(base: Any, arch: BoundArch) -> None:
    """Where attention scores are capped, let the model run our attention function: PyTorch's fused one knows no cap,
    and older transformers leave it out silently."""
    if softcap_of(base.config, arch, "attention") is not None:
        attention.register_attention()
        set_implementation(base.config, attention.NAME)
