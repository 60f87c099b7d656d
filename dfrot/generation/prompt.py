"""The prompt's pass of the target, and which slots of it the draft gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


@dataclass(frozen=True)
class PrefilledPrompt:
    """A prompt that ran: features [n, f], logits float32 [V] of its last row, and the draft's slots of it: embeddings
    [m, d] and, where image tokens are left out, their positions int64 [m]."""

    features: Tensor
    logits: Tensor
    embeddings: Tensor
    places: Tensor | None = None

    def slots(self, target: Target, token: int) -> tuple[Tensor, Tensor | None]:
        """Embeddings and positions of the prompt's slots and of the first token behind it."""
        embeddings = torch.cat([self.embeddings, target.embed(torch.tensor([token]))])
        if self.places is None:
            return embeddings, None
        return embeddings, torch.cat([self.places, torch.tensor([len(self.features)])])


def prefill_prompt(target: Target, prompt: Sequence[int], cache: Any, images: ImageInputs | None) -> PrefilledPrompt:
    """Fill `cache`. With images both plain and speculative decoding look on, so that they compute alike."""
    ids = torch.tensor(prompt)
    if images is None:
        return PrefilledPrompt(*target.prefill(ids, cache), target.embed(ids))
    sight = target.image_attention_probe(ids)
    seen = target.prefill_multimodal(ids, images.given, cache, sight)
    kept = sight.kept(images.keep)
    return PrefilledPrompt(seen.features, seen.logits, seen.embeddings[kept], kept)
