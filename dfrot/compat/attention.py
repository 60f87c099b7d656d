"""transformers' table of attention functions: registering, choosing and wrapping them.

Which function a model runs is the string `_attn_implementation` of its configuration, looked up in a table on every
call. The table has a process-wide layer, which `register` writes, and a layer per table object that takes precedence.
"eager" is in neither: there each model file uses a function of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

AttentionFunction = Callable[..., "tuple[Tensor, Tensor | None]"]
"""(module, query [B, H, S, D], key [B, Hkv, L, D], value, mask or None, **options) -> ([B, S, H, D], weights or None).

Options that dfq reads: scaling (float or None: D ** -0.5), dropout, softcap (float or None), position_bias."""


def register(name: str, function: AttentionFunction) -> None:
    """Make an attention function known under `name`, with the boolean masks that "sdpa" gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function around PyTorch's scaled dot product attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **options)  # type: ignore[no-any-return]


def registered(name: str) -> AttentionFunction | None:
    """The function that runs under `name` now, wrappers included; None for "eager" and unknown names, and as long as
    no model of transformers can have been loaded, which importing its table would cost seconds."""
    modeling = sys.modules.get("transformers.modeling_utils")
    table = getattr(modeling, "ALL_ATTENTION_FUNCTIONS", None)  # None too while that module is being imported
    return None if table is None else table.get(name)


def implementation(config: Any) -> str:
    """The name of the attention function that models with this configuration run."""
    return str(config._attn_implementation)


def set_implementation(config: Any, name: str) -> None:
    """Let every module that holds this very configuration object run the attention function `name`.

    transformers' public `set_attn_implementation` is a method of whole models, and it refuses names for models that do
    not declare support."""
    config._attn_implementation = name


@contextlib.contextmanager
def kept_implementation(config: Any) -> Iterator[None]:
    """While active, models may be built around this configuration, for which transformers chooses its attention
    function anew; afterwards it names the one that it named before."""
    name = config._attn_implementation
    try:
        yield
    finally:
        config._attn_implementation = name


def default_implementation(model: Any) -> str:
    """What transformers chooses for a loaded model when nothing is asked for."""
    return "sdpa" if model._supports_sdpa else "eager"


@contextlib.contextmanager
def wrapped(name: str, wrap: Callable[[AttentionFunction], AttentionFunction]) -> Iterator[None]:
    """While active, `name` runs `wrap(the function that it ran before)`. Nests; no model is changed.

    Raises KeyError for a name that is not in the table, such as "eager".
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    local: dict[str, AttentionFunction] = table._local_mapping
    before = local.get(name)
    table[name] = wrap(table[name])
    try:
        yield
    finally:
        if before is None:
            del table[name]
        else:
            table[name] = before
