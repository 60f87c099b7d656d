"""What a quantizer plug-in of transformers is made of: base classes, weight conversions, the tables of quantizers.

The plug-in is imported while transformers itself is still being imported (see dfrot/compat/import_hook.py), so nothing
here may import more of transformers than it needs at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plugin_bases() -> tuple[Any, Any]:
    """The base classes of a quantizer and of its configuration."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    return HfQuantizer, QuantizationConfigMixin


def register(method: str, config: type[Any], quantizer: type[Any]) -> None:
    """Enter both classes under `quant_method` in transformers' tables. Calling it again changes nothing.

    transformers' own decorators (`register_quantizer`) refuse a name that is known already.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(method, config)
    AUTO_QUANTIZER_MAPPING.setdefault(method, quantizer)


def without_converters(conversions: Sequence[Any]) -> list[Any]:
    """A model's weight conversions without those that change tensors (merging experts); plain renamings stay."""
    from transformers.core_model_loading import WeightConverter

    return [conversion for conversion in conversions if not isinstance(conversion, WeightConverter)]
