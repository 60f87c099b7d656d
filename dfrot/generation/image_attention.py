"""image_attention"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.generation.attention_scores import ROWS_AT_A_TIME, capped


class ImageAttentionProbe:
    """How much the prompt's text looks at each image token, from the attention of one of the target's last layers.

    tokens int64 [n]: of the prompt. layer: the last whose rows see everything before them. scores float32 [image
    tokens]: mean over heads and rows behind the last image."""

    def __init__(self, tokens: Tensor, image_token: int, layer: int) -> None:
        self.columns = (tokens == image_token).nonzero().flatten()
        if not len(self.columns):
            raise InputError("the prompt holds no image token; give the processor's ids, or leave the images out")
        first = int(self.columns[-1]) + 1
        self.rows = torch.arange(min(first, len(tokens) - 1), len(tokens))
        self.count, self.layer = len(tokens), layer
        self.scores = torch.zeros(len(self.columns))

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        causal: bool,
        cap: float | None = None,
    ) -> None:
        """Look on (dfrot/runtime/attention_hooks.py): query [1, H, n, D], key [1, Hkv, n, D] of the prompt's pass.
        These rows are text, which is causal whatever images are."""
        if layer != self.layer:
            return
        heads, kv_heads = query.shape[1], key.shape[1]
        keys, places = key[0].float().transpose(-1, -2).unsqueeze(1), torch.arange(self.count)
        for rows in torch.split(self.rows, ROWS_AT_A_TIME):
            part = query[0].reshape(kv_heads, heads // kv_heads, query.shape[2], -1)[:, :, rows].float()
            hidden = places > rows[:, None]
            if mask is not None and mask.dtype == torch.bool:  # a window
                hidden = hidden | ~mask[0, 0, rows]
            weights = capped((part @ keys) * scale, cap).masked_fill(hidden, -torch.inf).softmax(-1)
            self.scores += weights[..., self.columns].sum((0, 1, 2)) / (heads * len(self.rows))

    def spread(self) -> Tensor:
        """float32 [n]: scores at the image tokens' positions, -1 elsewhere."""
        found = torch.full((self.count,), -1.0)
        found[self.columns] = self.scores
        return found

    def kept_positions(self, share: float) -> Tensor:
        """`kept_positions` of this prompt."""
        return kept_positions(self.spread(), share)


def kept_positions(scores: Tensor, share: float) -> Tensor:
    """Positions int64 that stay slots, rising, from scores float32 [n], negative for text, which stays: of every image
    (a run of its tokens) the best ceil(share * tokens)."""
    if not 0 <= share <= 1:
        raise InputError(f"visual tokens kept: {share} is not a share between 0 and 1")
    stays, columns = scores < 0, (scores >= 0).nonzero().flatten()
    breaks = (columns.diff() > 1).nonzero().flatten() + 1
    for run in torch.tensor_split(columns, breaks.tolist()):
        stays[run[scores[run].topk(math.ceil(share * len(run))).indices]] = True
    return stays.nonzero().flatten()
