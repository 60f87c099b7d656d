"""Which image tokens of a prompt the draft gets: those to which the prompt's text pays most attention.

The target attends to all image tokens. The draft's cache holds only a share of them, the ones with the highest scores
(DREAM, arXiv 2505.19201, section 3.3; the published code never runs its pruning). Positions do not change, and the
draft's cross-attention still reaches every feature. The scores come from the rows behind the prompt's last image, in
training and in decoding alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.generation.attention_scores import ROWS_AT_A_TIME, capped


class ImageAttentionProbe:
    """Attention that the text behind the last image pays to each image token, in one layer of the target.

    `scores` float32 [image tokens] is the mean over heads and rows, complete when the prompt has run.
    """

    def __init__(self, tokens: Tensor, image_token: int, layer: int) -> None:
        """tokens: the prompt, int64 [n]. image_token: the id of image tokens. layer: the layer to observe, whose rows
        must see everything before them. Raises InputError for a prompt without image tokens."""
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
        """The callback of `observe_attention` (dfrot/runtime/attention_hooks.py): query [1, H, n, D] and key
        [1, Hkv, n, D] of the prompt's pass. The probed rows are text, which is causal whatever the mask of images."""
        if layer != self.layer:
            return
        heads, kv_heads = query.shape[1], key.shape[1]
        keys, positions = key[0].float().transpose(-1, -2).unsqueeze(1), torch.arange(self.count)
        for rows in torch.split(self.rows, ROWS_AT_A_TIME):
            queries = query[0].reshape(kv_heads, heads // kv_heads, query.shape[2], -1)[:, :, rows].float()
            hidden = positions > rows[:, None]
            if mask is not None and mask.dtype == torch.bool:  # a sliding window
                hidden = hidden | ~mask[0, 0, rows]
            weights = capped((queries @ keys) * scale, cap).masked_fill(hidden, -torch.inf).softmax(-1)
            self.scores += weights[..., self.columns].sum((0, 1, 2)) / (heads * len(self.rows))

    def scores_by_position(self) -> Tensor:
        """float32 [n]: scores at the positions of image tokens, -1 elsewhere."""
        scores = torch.full((self.count,), -1.0)
        scores[self.columns] = self.scores
        return scores

    def kept_positions(self, share: float) -> Tensor:
        """`kept_positions` of this prompt."""
        return kept_positions(self.scores_by_position(), share)


def kept_positions(scores: Tensor, share: float) -> Tensor:
    """The positions that the draft gets: all text, and of every image the best ceil(share * tokens) image tokens.

    scores: float32 [n], negative for text; consecutive image tokens are one image. Returns int64 [m], rising."""
    if not 0 <= share <= 1:
        raise InputError(f"visual tokens kept: {share} is not a share between 0 and 1")
    kept, columns = scores < 0, (scores >= 0).nonzero().flatten()
    breaks = (columns.diff() > 1).nonzero().flatten() + 1
    for image in torch.tensor_split(columns, breaks.tolist()):
        kept[image[scores[image].topk(math.ceil(share * len(image))).indices]] = True
    return kept.nonzero().flatten()
