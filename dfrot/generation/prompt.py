"""The target's pass over the prompt, and which of its positions the draft gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.generation.multimodal import image_attention_probe, prefill_multimodal
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


@dataclass(frozen=True)
class PrefilledPrompt:
    """A prompt whose keys and values are in the cache."""

    features: Tensor
    """[n, f] for the draft, of every prompt position."""
    logits: Tensor
    """float32 [V] of the last position."""
    embeddings: Tensor
    """[m, d] of the positions that the draft gets."""
    positions: Tensor | None = None
    """int64 [m] of those positions where image tokens are left out; None where the draft gets all of them."""

    def draft_inputs(self, target: Target, token: int) -> tuple[Tensor, Tensor | None]:
        """Embeddings and positions of the draft's part of the prompt and of the first token behind it."""
        embeddings = torch.cat([self.embeddings, target.embed(torch.tensor([token]))])
        if self.positions is None:
            return embeddings, None
        return embeddings, torch.cat([self.positions, torch.tensor([len(self.features)])])


def prefill_prompt(target: Target, prompt: Sequence[int], cache: Any, images: ImageInputs | None) -> PrefilledPrompt:
    """Run the prompt and fill `cache`. With images the attention is probed in plain decoding too, although only the
    draft needs the scores: both ways of decoding must compute the prompt alike."""
    ids = torch.tensor(prompt)
    if images is None:
        return PrefilledPrompt(*target.prefill(ids, cache), target.embed(ids))
    probe = image_attention_probe(target, ids)
    prefill = prefill_multimodal(target, ids, images.tensors, cache, probe)
    kept = probe.kept_positions(images.keep)
    return PrefilledPrompt(prefill.features, prefill.logits, prefill.embeddings[kept], kept)
