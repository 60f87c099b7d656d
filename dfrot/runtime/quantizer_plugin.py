"""The plug-in that lets `AutoModelForCausalLM.from_pretrained` load dfq folders.

transformers asks a quantizer twice: before the weights are read (we check every tensor of the files against the
model and exchange linears for ours) and after (we prepare the kernels' operands and attach cache and attention).
Nothing is left to transformers' default of initialising what a file lacks.

At module level only light parts of transformers are imported: this file runs while transformers itself is still
being imported (see dfrot/compat/import_hook.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dfrot.errors import UnsupportedError
from dfrot.quant.config import QUANT_METHOD, DfqConfig


class DfqQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """transformers' view of a DfqConfig: `quantization_config` of config.json, strictly parsed."""

    def __init__(self, **entry: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.dfq = DfqConfig.from_dict({"quant_method": QUANT_METHOD, **entry})

    def to_dict(self) -> dict[str, Any]:
        return self.dfq.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


class DfqHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds rotated 16-bit, packed and simulated dfq models. See dfrot/runtime/install.py for what it puts in."""

    requires_calibration = True  # transformers' word for: only loads what was quantized before
    requires_parameters_quantization = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        device_map = kwargs.get("device_map")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise UnsupportedError("device_map: a dfq model cannot be offloaded to disk; use cpu or one device")

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        from dfrot.runtime.install import renamed_dtypes, replace_linears

        replace_linears(model, self.quantization_config.dfq, checkpoint_files)
        self._renamed = renamed_dtypes(model)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from dfrot.runtime.install import finish

        for name, dtype in self._renamed.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        finish(model, self.quantization_config.dfq)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *rest: Any) -> list[Any]:
        """Names may be mapped to transformers' own; experts are not merged, they are modules of ours."""
        from transformers.core_model_loading import WeightConverter

        return [one for one in weight_conversions if not isinstance(one, WeightConverter)]

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Load every tensor in the dtype its module declares (codes as they are, scales in bfloat16)."""
        is_float = (
            param.get_dtype().startswith(("F", "BF")) if hasattr(param, "get_dtype") else param.is_floating_point()
        )
        return dtype if is_float else None

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Enter both classes in transformers' tables. Calling it again changes nothing."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, DfqQuantizationConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, DfqHfQuantizer)
