"""Samples as token ids, the same in training and in measuring."""

from __future__ import annotations

from typing import Any

import torch
from shapes import sample
from torch import Tensor

IMAGE_TOKEN = 4094  # a token that the sentences of shapes.py never need
PATCHES = 16
TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
HELD_OUT = 1_000_000  # seeds from here on


def encoded(seed: int, tokenizer: Any) -> tuple[list[int], list[int], Tensor]:
    """Prompt ids (bos, image, question), answer ids with the end token, pixels [3, H, W]."""
    one = sample(seed)
    question = tokenizer(f"\n{one.question}\n", add_special_tokens=False)["input_ids"]
    answer = tokenizer(one.answer, add_special_tokens=False)["input_ids"]
    if IMAGE_TOKEN in question or IMAGE_TOKEN in answer:
        raise ValueError(f"sample {seed} needs the token that stands for images")
    return [0, *[IMAGE_TOKEN] * PATCHES, *question], [*answer, 1], one.pixels


def batch(seeds: list[int], tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """ids int64 [B, n], padded behind with the end token; labels with -100 outside answers; pixels [B, 3, H, W]."""
    found = [encoded(seed, tokenizer) for seed in seeds]
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in found)
    ids = torch.full((len(seeds), longest), 1)
    labels = torch.full((len(seeds), longest), -100)
    for row, (prompt, answer, _) in enumerate(found):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels, torch.stack([pixels for *_, pixels in found])
