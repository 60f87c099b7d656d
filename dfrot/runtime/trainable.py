"""A loaded packed model that gradients pass through: scales and norm gains learn, everything else stays as it is
when the model is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfrot.arch import BoundArch
from dfrot.compat import attention as table
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.modules.trainable_fp4_linear import TrainableFp4Linear
from dfrot.quant.modules.trainable_linear import RoundedTo, TrainableLinear
from dfrot.runtime.native_operands import attention_of
from dfrot.runtime.trainable_attention import NAME, trainable_attention


class TrainableModel:
    """A packed model whose scales and norm gains are parameters; of one in FP4 the gains alone.

    model: the model itself, changed for good. linears: its packed linears of integers by name. gains: names of its
    norms. parameters: everything that learns, by name with "/" for "."."""

    def __init__(self, model: Any, arch: BoundArch, stored: torch.dtype) -> None:
        """model: loaded in float32. stored: the dtype in which the checkpoint keeps gains."""
        self.model = model
        self.linears: dict[str, TrainableLinear] = {}
        for name, module in list(model.named_modules()):
            if isinstance(module, Fp4Linear):
                model.set_submodule(name, TrainableFp4Linear(module))
            elif isinstance(module, QuantLinear):
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
        tensors = {f"{name}.weight_scale": linear.scales() for name, linear in self.linears.items()}
        for name in self.gains:
            norm = self.model.get_submodule(name)
            tensors[f"{name}.weight"] = norm.weight.detach().to(norm.parametrizations.weight[0].dtype)
        return tensors


def halve_tables(model: Any) -> None:
    """Change embedding and head of a model in float32 to bfloat16, where they are not packed. The embedding's rows are
    float32 all the same; the head multiplies in bfloat16."""
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module in (embed, head):
        if type(module) in (nn.Embedding, nn.Linear):
            module.weight.data = module.weight.data.bfloat16()
    embed.register_forward_hook(lambda module, args, rows: rows.float())


def _use_trainable_attention(model: Any, arch: BoundArch) -> None:
    """Replace the packed cache by rounding that lets gradients through."""
    hooks = model.dfq_runtime
    kv, hooks.kv = hooks.kv, None
    if kv is None:
        return
    table.register(NAME, trainable_attention)
    for layer in range(arch.n_layers):
        attention = attention_of(model.base_model, arch, layer)
        attention.dfq_kv, attention.dfq_sinks = kv, hooks.sinks.count
    table.set_implementation(model.base_model.config, NAME)
