"""The plug-in that lets `AutoModelForCausalLM.from_pretrained` load dfq folders.

transformers calls a quantizer twice: before it reads the weights (we check every tensor of the files against the model
and replace linears by ours) and afterwards (we prepare the kernels' operands and attach cache and attention). Nothing
is left to transformers' default of initialising what a file lacks.

Importing this module registers the plug-in. It may run while transformers itself is still being imported (see
dfrot/compat/import_hook.py), so what imports more of transformers is imported only when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dfrot.compat.quantizers import plugin_bases, register, without_converters
from dfrot.errors import UnsupportedError
from dfrot.quant.config import QUANT_METHOD, DfqConfig

HfQuantizer: Any
QuantizationConfigMixin: Any
HfQuantizer, QuantizationConfigMixin = plugin_bases()


class DfqQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """transformers' view of a DfqConfig: `quantization_config` of config.json, strictly parsed."""

    def __init__(self, **entry: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.dfq = DfqConfig.from_dict({"quant_method": QUANT_METHOD, **entry})

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json."""
        return self.dfq.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing of the entry is left out when a model is saved."""
        return self.to_dict()

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


class DfqHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds rotated 16-bit, packed and simulated dfq models (dfrot/runtime/install.py)."""

    requires_calibration = True  # transformers' term for: only loads checkpoints that were quantized before
    requires_parameters_quantization = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what a dfq model cannot do. Raises UnsupportedError for offloading to disk."""
        device_map = kwargs.get("device_map")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise UnsupportedError("device_map: a dfq model cannot be offloaded to disk; use cpu or one device")

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        from dfrot.runtime.install import dtypes_of_renamed, replace_linears

        replace_linears(model, self.quantization_config.dfq, checkpoint_files)
        self._renamed = dtypes_of_renamed(model)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from dfrot.runtime.install import finish_model

        for name, dtype in self._renamed.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        finish_model(model, self.quantization_config.dfq)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *rest: Any) -> list[Any]:
        """Names may be mapped to transformers' own; experts are not merged, they are modules of ours."""
        return without_converters(weight_conversions)

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Load every tensor in the dtype that its module declares (codes as they are, scales in bfloat16)."""
        is_float = (
            param.get_dtype().startswith(("F", "BF")) if hasattr(param, "get_dtype") else param.is_floating_point()
        )
        return dtype if is_float else None

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """A loaded model can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Weights are integers, without gradients."""
        return False


register(QUANT_METHOD, DfqQuantizationConfig, DfqHfQuantizer)
