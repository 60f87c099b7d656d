"""transformers' hook for other ways to generate: `model.generate(..., custom_generate=function)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError

Decode = Callable[
    [list[int], int, frozenset[int], "Callable[[Tensor, Tensor], Tensor] | None", bool, "dict[str, Any]"], list[int]
]
"""(prompt, max_new_tokens, eos, processor of scores or None, whether to sample, tensors of the prompt's images, empty
without images) -> new tokens."""
_NOT_IMAGES = {"attention_mask", "past_key_values", "use_cache", "cache_position", "logits_to_keep"}
_SUPPORTED_CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}


def eos_token_ids(generation_config: Any) -> frozenset[int]:
    """Ids that end a text: a generation config holds none, one or several."""
    ids = generation_config.eos_token_id
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def custom_generate_hook(decode: Decode) -> Callable[..., Tensor]:
    """A function for `custom_generate` that decodes the rows of a batch one by one with `decode`.

    When it is called, transformers has prepared the prompt, the stopping length and the logits processors (temperature
    and filters among them). It raises UnsupportedError for padding and for stopping criteria other than length and end
    tokens."""

    def generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise UnsupportedError("padding in a batch: drafting serves rows of one length; generate them one by one")
        criteria = [type(criterion).__name__ for criterion in stopping_criteria or ()]
        if other := [name for name in criteria if name not in _SUPPORTED_CRITERIA]:
            raise UnsupportedError(f"{other[0]}: drafting stops at a length or an end token; leave it out")
        eos = eos_token_ids(generation_config)
        max_new_tokens = int(generation_config.max_length) - input_ids.shape[1]
        images = _image_inputs(model, input_ids, model_kwargs)
        sampled = bool(generation_config.do_sample)
        rows = [
            decode(row.tolist(), max_new_tokens, eos, logits_processor or None, sampled, images) for row in input_ids
        ]
        pad = generation_config.pad_token_id
        fill = int(pad if pad is not None else min(eos, default=0))
        out = torch.full((len(rows), max(map(len, rows))), fill, dtype=input_ids.dtype)
        for index, row in enumerate(rows):
            out[index, : len(row)] = torch.tensor(row)
        return torch.cat([input_ids, out.to(input_ids.device)], 1)

    return generate


def _image_inputs(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The tensors of the images in a prompt int64 [B, n], as `generate` prepared them; empty without images.

    Raises UnsupportedError for prompts that are no tokens, and for images in a batch of several rows."""
    inputs = {name: value for name, value in model_kwargs.items() if name not in _NOT_IMAGES and value is not None}
    if "inputs_embeds" in inputs:
        raise UnsupportedError("inputs_embeds: drafting decodes tokens; give input_ids")
    if not bool((input_ids == getattr(model.config, "image_token_id", -1)).any()):
        return {}
    if len(input_ids) > 1:
        raise UnsupportedError(
            "images in a batch of several rows: it is not known which row they belong to; generate them one by one"
        )
    positions = inputs.get("position_ids")
    if positions is not None and positions.dim() < 3:  # those that the model would use anyway
        del inputs["position_ids"]
    return inputs
