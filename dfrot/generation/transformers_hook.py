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
"""(prompt, max_new_tokens, eos, processor of scores or None, whether to sample, what the model takes of the images in
the prompt, empty without) -> new tokens."""
_OWN = {"attention_mask", "past_key_values", "use_cache", "cache_position", "logits_to_keep"}  # of plain generation


def eos_token_ids(generation_config: Any) -> frozenset[int]:
    """Ids that end a text: transformers keeps none, one or several."""
    ends = generation_config.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def custom_generate_hook(decode: Decode) -> Callable[..., Tensor]:
    """A function for `custom_generate` that serves one sequence at a time through `decode`.

    transformers has prepared the prompt, the stopping length and the logits processors (temperature and filters
    among them) by then; stopping criteria other than length and end tokens are refused."""

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
        known = {"MaxLengthCriteria", "EosTokenCriteria"}
        if other := [type(one).__name__ for one in stopping_criteria or () if type(one).__name__ not in known]:
            raise UnsupportedError(f"{other[0]}: drafting stops at a length or an end token; leave it out")
        eos = eos_token_ids(generation_config)
        longest = int(generation_config.max_length) - input_ids.shape[1]
        given = _seen(model, input_ids, model_kwargs)
        sampled = bool(generation_config.do_sample)
        rows = [decode(row.tolist(), longest, eos, logits_processor or None, sampled, given) for row in input_ids]
        width = max(map(len, rows))
        pad = generation_config.pad_token_id
        fill = int(pad if pad is not None else min(eos, default=0))
        out = torch.full((len(rows), width), fill, dtype=input_ids.dtype)
        for number, row in enumerate(rows):
            out[number, : len(row)] = torch.tensor(row)
        return torch.cat([input_ids, out.to(input_ids.device)], 1)

    return generate


def _seen(model: Any, input_ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a model takes of the images in a prompt int64 [B, n], as `generate` prepared it; empty without images.
    Raises UnsupportedError for prompts that are not tokens, and for images in a batch of several rows."""
    given = {name: value for name, value in kwargs.items() if name not in _OWN and value is not None}
    if "inputs_embeds" in given:
        raise UnsupportedError("inputs_embeds: drafting decodes tokens; give input_ids")
    if not bool((input_ids == getattr(model.config, "image_token_id", -1)).any()):
        return {}
    if len(input_ids) > 1:
        raise UnsupportedError(
            "images in a batch of several rows: which are whose is not told; generate them one by one"
        )
    places = given.get("position_ids")
    if places is not None and places.dim() < 3:  # those that the model would take
        del given["position_ids"]
    return given
