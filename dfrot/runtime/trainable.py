"""A loaded packed model as one that gradients pass: its scales and norm gains learn, everything else is as served."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfrot.arch import BoundArch
from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.linear import QuantLinear
from dfrot.quant.tuned import RoundedTo, TrainableLinear, hadamard, straight_through
from dfrot.runtime.kv_cache import KVSpec
from dfrot.runtime.native_operands import attention_of

NAME = "dfq-trainable"


class TrainableModel:
    """model: loaded in float32, changed for good. linears: its packed ones by name. gains: names of its norms."""

    def __init__(self, model: Any, arch: BoundArch, stored: torch.dtype) -> None:
        """stored: the dtype in which the checkpoint keeps gains."""
        self.model = model
        self.linears: dict[str, TrainableLinear] = {}
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantLinear):
                self.linears[name] = TrainableLinear(module)
                model.set_submodule(name, self.linears[name])
        model.requires_grad_(False)
        self.gains = [arch.full(layer, norm.name) for layer in range(arch.n_layers) for norm in arch.spec.norms]
        self.gains.append(arch.spec.final_norm.name)
        for name in self.gains:
            norm = model.get_submodule(name)
            parametrize.register_parametrization(norm, "weight", RoundedTo(stored))
        self.parameters = nn.ParameterDict()
        for name, linear in self.linears.items():
            self._learn(f"{name}.growth", linear.growth)
        for name in self.gains:
            self._learn(name, model.get_submodule(name).parametrizations.weight.original)
        _attend(model, arch)

    def _learn(self, name: str, parameter: nn.Parameter) -> None:
        parameter.requires_grad_(True)
        self.parameters[name.replace(".", "/")] = parameter

    def tensors(self) -> dict[str, Tensor]:
        """What the checkpoint stores of all that learns, by tensor name."""
        found = {f"{name}.weight_scale": linear.packed().scale for name, linear in self.linears.items()}
        for name in self.gains:
            norm = self.model.get_submodule(name)
            found[f"{name}.weight"] = norm.weight.detach().to(norm.parametrizations.weight[0].dtype)
        return found


def _attend(model: Any, arch: BoundArch) -> None:
    """Exchange the packed cache for rounding that lets gradients through."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    runtime = model.dfq_runtime
    kv, runtime.kv = runtime.kv, None
    if kv is None:
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for layer in range(arch.n_layers):
        attention_of(model.base_model, arch, layer).dfq_kv = kv
    model.base_model.config._attn_implementation = NAME


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    kv: KVSpec = module.dfq_kv
    query, key, value = query.float(), key.float(), value.float()
    if getattr(module, "r3_base", None) is not None:
        query, key = (hadamard(x, module.r3_base, module.r3_block) for x in (query, key))

    def stored(x: Tensor) -> Tensor:
        return straight_through(x, lambda rows: fake_quantize_kv(rows, kv.bits, kv.symmetric, kv.clip))

    return sdpa_attention_forward(module, query, stored(key), stored(value), mask, **kwargs)  # type: ignore[no-any-return]
