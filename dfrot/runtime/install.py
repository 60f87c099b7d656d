"""Turning a freshly built transformers model into a dfq model, before and after its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfrot.arch import BoundArch, describe
from dfrot.checkpoint import TensorEntry, read_header
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant import resets
from dfrot.quant.config import DfqConfig
from dfrot.quant.linear import DenseLinear, QuantLinear
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.quant.scheme import FULL
from dfrot.runtime import attention, experts
from dfrot.runtime.block_runner import softcap_of


def _arch(model: Any) -> BoundArch:
    arch = describe(model.config.to_dict())
    if not hasattr(model, arch.spec.head.name):
        raise UnsupportedError(
            f"{type(model).__name__}: dfq checkpoints are causal language models; load with AutoModelForCausalLM"
        )
    return arch


def _headers(files: Sequence[str] | None) -> dict[str, TensorEntry]:
    if not files:
        raise UnsupportedError("a dfq checkpoint is loaded from its folder, not from a state dict")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise UnsupportedError(f"{file}: dfq reads safetensors only")
        entries.update(read_header(Path(file)))
    return entries


def _module(plan: LinearPlan, old: nn.Module, entry: TensorEntry | None, dtype: torch.dtype) -> nn.Module:
    bias = getattr(old, "bias", None) is not None
    if plan.packed:
        return QuantLinear(plan, bias, dtype)
    stored = entry.dtype if entry is not None and entry.dtype.is_floating_point else dtype
    return DenseLinear(plan, bias, dtype, stored)


def replace_linears(model: Any, config: DfqConfig, files: Sequence[str] | None) -> None:
    """Exchange the linears that the config touches, then compare the files with the model's tensors.

    Raises InputError naming the first missing, unexpected or malformed tensor and its file."""
    arch = _arch(model)
    where = str(Path(files[0]).parent / "config.json") if files else "config.json"
    entries = {arch.stored(name): entry for name, entry in _headers(files).items()}
    experts.install(model, arch, model.dtype)
    for name, plan in plan_linears(arch, config, where).items():
        module = arch.module(name)
        old = model.get_submodule(module)
        entry = entries.get(f"{name}.weight")
        # a simulated weight lies on a grid that the model's dtype may not hold: keep the stored one
        stored = entry if config.fake and plan.w_bits != FULL else None
        model.set_submodule(module, _module(plan, old, stored, model.dtype))
    check_tensors(model, arch, entries, Path(files[0]).parent if files else Path())


def renamed_dtypes(model: Any) -> dict[str, torch.dtype]:
    """Parameters that are stored under another name, and the dtypes that they shall have: transformers 5.20 loads what
    it renames as it is stored."""
    arch = _arch(model)
    return {name: parameter.dtype for name, parameter in model.named_parameters() if arch.stored(name) != name}


def check_tensors(model: Any, arch: BoundArch, entries: dict[str, TensorEntry], folder: Path) -> None:
    """Every tensor of the model must be in the files with its shape and kind of dtype, and no other."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    expected = {arch.stored(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in expected.items():
        entry = entries.get(name)
        if entry is None:
            if arch.module(name) in tied:
                continue
            raise InputError(f"{folder}: tensor {name} is missing; the checkpoint is incomplete, make it again")
        if entry.shape != tuple(tensor.shape):
            raise InputError(
                f"{entry.file}: tensor {name}: shape {list(entry.shape)}, "
                f"config.json needs {list(tensor.shape)}; make the checkpoint again"
            )
        packed = name.endswith((".weight_packed", ".weight_zero", ".weight_scale"))
        if (packed and entry.dtype != tensor.dtype) or entry.dtype.is_floating_point != tensor.is_floating_point():
            raise InputError(f"{entry.file}: tensor {name}: dtype {entry.dtype}, needs {tensor.dtype}")
    for name, entry in entries.items():
        if name not in expected and not name.endswith("rotary_emb.inv_freq"):
            raise InputError(
                f"{entry.file}: tensor {name} does not belong to this model; is config.json the right one?"
            )


def base_of(model: Any, arch: BoundArch) -> Any:
    """The language model below its head, wherever it lies."""
    return model.base_model if arch.wrapper is None else model.get_submodule(arch.wrapper.inside)


def finish(model: Any, config: DfqConfig) -> None:
    """After loading: check scales, prepare kernel operands, attach the KV cache, R3 and the sinks."""
    from dfrot.runtime import native_decoder as decode
    from dfrot.runtime.forward_hooks import ForwardHooks
    from dfrot.runtime.kv_cache import KVSpec

    arch = _arch(model)
    scheme = config.scheme
    kv = None
    if scheme is not None and scheme.kv_bits != FULL:
        kv = KVSpec(scheme.kv_bits, scheme.kv_sym, scheme.kv_clip, config.online.r3)
    runtime = ForwardHooks(kv, config.sink_tokens, arch.n_layers)
    base = base_of(model, arch)
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | DenseLinear):
            module.prepare(arch.stored(name))
            module.sinks = runtime.sinks if name != arch.spec.head.name else None
        elif isinstance(module, experts.Experts):
            module.sinks = runtime.sinks
    if kv is not None:
        attention.register()
        own = "sdpa" if base._supports_sdpa else "eager"  # what transformers takes unless it is told otherwise
        capped = {"eager"} if softcap_of(base.config, arch, "attention") is not None else set()
        if base.config._attn_implementation not in {own, attention.NAME} | capped:
            raise UnsupportedError(
                f"attn_implementation={base.config._attn_implementation!r}: dfq models run on {own}; leave it out"
            )
        if kv.r3 is not None:
            for name in _attentions(arch):
                attention.rotate_queries(model.get_submodule(arch.module(name)), kv.r3)
        base.config._attn_implementation = attention.NAME
    keep_caps(base, arch)
    resets.attach(model, config.resets)
    runtime.attach(base)
    decode.attach(model, base, arch, kv, runtime.sinks)
    model.dfq_runtime = runtime


def keep_caps(base: Any, arch: BoundArch) -> None:
    """Attention whose scores are capped runs on ours: PyTorch's fused one knows no cap, and older transformers leave it
    out without a word."""
    if softcap_of(base.config, arch, "attention") is not None:
        attention.register()
        base.config._attn_implementation = attention.NAME


def _attentions(arch: BoundArch) -> set[str]:
    """Modules whose linears write query and key heads."""
    return {name.rpartition(".")[0] for _, linear, name in arch.linears() if linear.enters("qk")}
