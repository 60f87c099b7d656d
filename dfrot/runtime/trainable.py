"""A loaded packed model that gradients pass through: its scales and norm gains learn, everything else stays as it is
when the model is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfrot.arch import BoundArch
from dfrot.compat import attention as table
from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.key_shift import TENSOR as KEY_SHIFT
from dfrot.quant.linear import QuantLinear
from dfrot.quant.rotated_linear import hadamard
from dfrot.quant.trainable_linear import RoundedTo, TrainableLinear, straight_through
from dfrot.runtime.native_operands import attention_of
from dfrot.runtime.packed_states import KVSpec

NAME = "dfq-trainable"


class TrainableModel:
    """A packed model whose scales and norm gains are parameters.

    model: the model itself, changed for good. linears: its packed linears by name. gains: names of its norms.
    parameters: everything that learns, by name with "/" for "."."""

    def __init__(self, model: Any, arch: BoundArch, stored: torch.dtype) -> None:
        """model: loaded in float32. stored: the dtype in which the checkpoint keeps gains."""
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
            self._train(f"{name}.growth", linear.growth)
        for name in self.gains:
            self._train(name, model.get_submodule(name).parametrizations.weight.original)
        _use_trainable_attention(model, arch)

    def _train(self, name: str, parameter: nn.Parameter) -> None:
        """Let a parameter learn, under `name`."""
        parameter.requires_grad_(True)
        self.parameters[name.replace(".", "/")] = parameter

    def tensors(self) -> dict[str, Tensor]:
        """What the checkpoint stores of everything that learns, by tensor name: scales bfloat16, gains in their stored
        dtype."""
        tensors = {f"{name}.weight_scale": linear.packed().scale for name, linear in self.linears.items()}
        for name in self.gains:
            norm = self.model.get_submodule(name)
            tensors[f"{name}.weight"] = norm.weight.detach().to(norm.parametrizations.weight[0].dtype)
        return tensors


def _use_trainable_attention(model: Any, arch: BoundArch) -> None:
    """Replace the packed cache by rounding that lets gradients through."""
    hooks = model.dfq_runtime
    kv, hooks.kv = hooks.kv, None
    if kv is None:
        return
    table.register(NAME, _trainable_attention)
    for layer in range(arch.n_layers):
        attention_of(model.base_model, arch, layer).dfq_kv = kv
    table.set_implementation(model.base_model.config, NAME)


def _trainable_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention over keys and values [B, kv_heads, length, D] rounded as the packed cache rounds them, in float32."""
    kv: KVSpec = module.dfq_kv
    query, key, value = query.float(), key.float(), value.float()
    if getattr(module, "r3_base", None) is not None:
        query, key = (hadamard(x, module.r3_base, module.r3_block) for x in (query, key))
    if (shift := getattr(module, KEY_SHIFT, None)) is not None:
        key = key - shift.float()[:, None]

    def rounded(states: Tensor) -> Tensor:
        return straight_through(states, lambda x: fake_quantize_kv(x, kv.bits, kv.symmetric, kv.clip))

    return table.sdpa(module, query, rounded(key), rounded(value), mask, **kwargs)
