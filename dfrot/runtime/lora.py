"""PEFT's LoRA adapters (arXiv 2106.09685) on our linears: `get_peft_model` and `PeftModel.from_pretrained` accept them.

The adapter runs beside the integer product, in its own dtype. Packed weights cannot take it in, and have no gradients:
merging and training are refused. An adapter fits the space that it was trained in, so it is trained on the rotated
16-bit checkpoint that the packed one was made from.

Importing this module registers our linears; it is imported as soon as peft's `lora.model` is (see
dfrot/compat/import_hook.py).
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.model import LoraModel
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.modules.linear import QuantLinear

OUR_LINEARS = (QuantLinear, Fp4Linear, DenseLinear)
_INITIAL = (True, False, "gaussian")  # of LoraConfig.init_lora_weights: those that do not read the weight


class AdaptedLinear(Linear):  # type: ignore[misc]
    """A linear of ours with LoRA adapters beside it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., K] -> [..., N] of its dtype."""
        out: Tensor = super().forward(x, *args, **kwargs)
        return _Inference.apply(out) if out.requires_grad else out  # type: ignore[no-untyped-call]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises UnsupportedError: integers on a grid cannot take in a product of floats."""
        raise UnsupportedError(
            "an adapter cannot be merged into quantized or rotated linears; merge it into the 16-bit checkpoint and "
            "quantize that, or keep it beside them"
        )


class _Inference(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise UnsupportedError(
            "adapters on quantized linears are for inference: integers have no gradients; train the adapter on the "
            "rotated 16-bit checkpoint"
        )


_create_new_module = LoraModel._create_new_module


@functools.wraps(_create_new_module)
def _create_with_ours(lora_config: Any, adapter_name: str, target: Any, **kwargs: Any) -> Any:
    """peft's factory, which reads custom classes from the configuration; they are not saved with it."""
    linear = target.get_base_layer() if hasattr(target, "get_base_layer") else target
    if isinstance(linear, OUR_LINEARS):
        if lora_config.use_dora or lora_config.init_lora_weights not in _INITIAL:
            raise UnsupportedError(
                "DoRA, and initial values that are computed from the weight, need dense 16-bit linears; leave "
                "`use_dora` and `init_lora_weights` at their defaults"
            )
        lora_config._register_custom_module(dict.fromkeys(OUR_LINEARS, AdaptedLinear))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type '<class 'dfrot")
        return _create_new_module(lora_config, adapter_name, target, **kwargs)


LoraModel._create_new_module = staticmethod(_create_with_ours)
