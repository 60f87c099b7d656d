"""All variants of one checkpoint, block by block: each block is read once, and layers below the first rounded one are
not computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dfrot.calib.taps import samples_per_chunk
from dfrot.progress import Progress
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.refinement.calibration_rows import normalise
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.massive_tokens import massive_mask
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.sensitivity.treatment import TreatedBlock
from dfrot.stages.sensitivity.variants import COMMON, FIRST, MASSIVE, Variant

TokenMasks = Mapping[str, Tensor]
"""Class of tokens -> bool [B, S]: which tokens belong to it, in one layer."""


class VariantStreams:
    """The hidden states of the exact model and of every variant."""

    def __init__(self, runner: BlockRunner, scheme: QuantScheme, options: AlgorithmOptions) -> None:
        self.runner, self.scheme, self.options = runner, scheme, options

    @torch.no_grad()
    def run(
        self,
        tokens: Tensor,
        variants: Sequence[Variant],
        rule: MassiveRule,
        masks: Sequence[TokenMasks] | None,
        progress: Progress,
    ) -> tuple[Tensor, dict[int, Tensor], list[TokenMasks]]:
        """Hidden states behind the last block, [B, S, d]: of the exact model, and of those variants, by number, that
        differ from it there; and the token masks of every layer.

        tokens: int64 [B, S]. masks: those of the unrotated model; None: from this model, by `rule`."""
        exact = self.runner.embed(tokens)
        streams = {
            number: self._embedding(tokens, exact) for number, variant in enumerate(variants) if variant.embedding
        }
        used: list[TokenMasks] = []
        layers = self.runner.arch.n_layers
        for layer in range(layers):
            progress("sensitivity", layer, layers)
            block = TreatedBlock(self.runner, layer, self.scheme, self.options)
            behind = block.exact(exact)
            used.append(masks[layer] if masks is not None else _token_masks(exact, behind, rule))
            following = self._exact_block(block, {n: s for n, s in streams.items() if not variants[n].in_layer(layer)})
            for number, variant in enumerate(variants):
                if variant.in_layer(layer):
                    following[number] = block.treated(variant, streams.get(number, exact), used[layer])
            exact, streams = behind, following
        progress("sensitivity", layers, layers)
        return exact, streams, used

    def _embedding(self, tokens: Tensor, exact: Tensor) -> Tensor:
        """The rounded embeddings of tokens; every row of the table has its own scale."""
        ids, inverse = torch.unique(tokens, return_inverse=True)
        rows = torch.empty(len(ids), exact.shape[-1], dtype=exact.dtype)
        rows[inverse.flatten()] = exact.reshape(-1, exact.shape[-1])
        return rtn.quantize(rows, None, self.scheme, self.options).dequantize().to(exact.dtype)[inverse]

    def _exact_block(self, block: TreatedBlock, streams: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The exact block on many streams, several together."""
        following: dict[int, Tensor] = {}
        numbers = list(streams)
        if not numbers:
            return following
        count, seqlen, _ = streams[numbers[0]].shape
        together = max(1, samples_per_chunk(self.runner.arch, seqlen) // count)
        for begin in range(0, len(numbers), together):
            part = numbers[begin : begin + together]
            out = block.exact(torch.cat([streams[number] for number in part]))
            following.update(zip(part, torch.split(out, count)))
        return following


def _token_masks(before: Tensor, behind: Tensor, rule: MassiveRule) -> TokenMasks:
    """Classes of tokens by the residual stream [B, S, d] before and behind a block."""
    massive = torch.zeros(before.shape[:2], dtype=torch.bool)
    for hidden in (before, behind):
        rows = normalise(hidden, 0.0).reshape(-1, hidden.shape[-1])
        massive |= massive_mask(rows, rule).view(massive.shape)
    first = torch.zeros_like(massive)
    first[:, 0] = True
    massive &= ~first
    return {FIRST: first, MASSIVE: massive, COMMON: ~(first | massive)}
