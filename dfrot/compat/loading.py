"""Which stored tensors transformers loads into which parameter, and loading them module by module.

`from_pretrained` reads a whole model. Here the same rules of renaming and merging act on one module's tensors at a
time, so that a model of any size runs in the memory of its largest module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def meta_parameters() -> Iterator[None]:
    """While active, parameters of new modules take no memory; buffers, which are computed, are real."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _conversions(model: Any, key_mapping: Mapping[str, str] | None) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping

    return list(get_model_conversion_mapping(model, dict(key_mapping) if key_mapping else None, None))


def parameter_sources(
    model: Any, stored: list[str], key_mapping: Mapping[str, str] | None = None
) -> tuple[dict[str, list[str]], list[str]]:
    """(parameter -> the stored tensors that make it, stored tensors that no parameter takes).

    model: may be on the meta device. key_mapping: as of `from_pretrained`."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = _conversions(model, key_mapping)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    parameters, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, list[str]] = {}
    ignored = []
    for name in stored:
        target, _ = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, _ = rename_source_key(name, [], [], prefix, parameters)
        if target in parameters:
            sources.setdefault(target, []).append(name)
        else:
            ignored.append(name)
    return sources, ignored


def load_parameters(
    model: Any, tensors: Mapping[str, Any], dtype: torch.dtype, key_mapping: Mapping[str, str] | None = None
) -> None:
    """Load stored tensors (or safetensors slices of them) into the parameters that `parameter_sources` names."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(dtype=dtype, weight_mapping=_conversions(model, key_mapping))
    convert_and_load_state_dict_in_model(model=model, state_dict=dict(tensors), load_config=settings)


def tied_parameters(model: Any) -> dict[str, str]:
    """Parameter -> the one whose weight it shares unless the files hold both."""
    return dict(model.all_tied_weights_keys)
