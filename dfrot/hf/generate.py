"""transformers' hook for other ways to generate: `model.generate(..., custom_generate=function)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError

Decode = Callable[[list[int], int, frozenset[int], "Callable[[Tensor, Tensor], Tensor] | None", bool], list[int]]
"""(prompt, max_new_tokens, eos, processor of scores or None, whether to sample) -> new tokens."""


def end_tokens(generation_config: Any) -> frozenset[int]:
    """Ids that end a text: transformers keeps none, one or several."""
    ends = generation_config.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def hook(decode: Decode) -> Callable[..., Tensor]:
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
        eos = end_tokens(generation_config)
        longest = int(generation_config.max_length) - input_ids.shape[1]
        rows = [
            decode(row.tolist(), longest, eos, logits_processor or None, bool(generation_config.do_sample))
            for row in input_ids
        ]
        width = max(map(len, rows))
        pad = generation_config.pad_token_id
        fill = int(pad if pad is not None else min(eos, default=0))
        out = torch.full((len(rows), width), fill, dtype=input_ids.dtype)
        for number, row in enumerate(rows):
            out[number, : len(row)] = torch.tensor(row)
        return torch.cat([input_ids, out.to(input_ids.device)], 1)

    return generate
