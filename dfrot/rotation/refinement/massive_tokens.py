"""Which rows of RMSNorm outputs belong to massive tokens. Every score is a function of x / |x| alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

TOP_CHANNELS = 4  # massive tokens hold their energy in 1-4 channels (DFRot, section 3.2)
MAXMEDIAN_WIDTH = 4096  # width for which Sun et al. state their ratio


def massive_scores(rows: Tensor, rule: MassiveRule) -> Tensor:
    """The quantity that `rule` compares with its threshold, float32 [n], for rows [n, d] of any positive scale."""
    width = rows.shape[1]
    rows = rows.float()
    norm: Tensor = rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    if rule.name == "energy":
        top = rows.abs().topk(min(TOP_CHANNELS, width), dim=1).values
        share: Tensor = top.square().sum(1) / norm.square()
        return share
    if rule.name == "maxmedian":
        magnitude = rows.abs()
        median = magnitude.median(dim=1).values.clamp_min(torch.finfo(torch.float32).tiny)
        ratio_to_median: Tensor = magnitude.amax(1) / median
        return ratio_to_median
    error: Tensor = TokenQuantizer(4, True).error(rows).sqrt().float() / norm
    return error * math.sqrt(width) if rule.name == "published" else error


def massive_mask(rows: Tensor, rule: MassiveRule) -> Tensor:
    """bool [n]: which of rows [n, d] are massive. A row of zeros never is."""
    scores = massive_scores(rows, rule)
    if rule.name == "energy":
        massive = scores > rule.threshold
    elif rule.name == "maxmedian":
        massive = scores >= rule.threshold * math.sqrt(rows.shape[1] / MAXMEDIAN_WIDTH)
    else:
        massive = scores < rule.threshold
    return massive & (rows != 0).any(1)
