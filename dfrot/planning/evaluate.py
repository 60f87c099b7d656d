"""The cost of `dfq eval ppl`."""

from __future__ import annotations

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint
from dfrot.planning.blocks import BlockShapes
from dfrot.planning.work import StageCost
from dfrot.processor import fast_bfloat16
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.settings import QuantizeSettings

TEXT_TOKENS = 341_469
"""Tokens of the test split of WikiText-2 with the tokenizer of Llama 2, where all windows are evaluated."""


def evaluate_cost(
    checkpoint: Checkpoint, arch: BoundArch, settings: PerplexitySettings, packed: QuantizeSettings | None
) -> StageCost:
    """What the perplexities of the 16-bit model and, behind a quantization, of the packed one cost."""
    cost = StageCost("eval")
    shapes = BlockShapes(arch, next(iter(checkpoint.entries.values())).dtype.itemsize)
    windows = settings.windows or max(1, TEXT_TOKENS // settings.seqlen)
    tokens = float(windows * settings.seqlen)
    if settings.windows is None:
        cost.notes.append(f"eval: all windows of a text of {TEXT_TOKENS:,} tokens (WikiText-2) are taken")
    half = "products16" if fast_bfloat16() and shapes.source_itemsize == 2 else "products32"
    models = [half]
    if packed is not None:
        integers = packed.scheme.number_format == INTEGERS and packed.scheme.a_bits != FULL
        models.append("integers" if integers else half)
    for _ in models:
        cost.add(read=shapes.stored, start=1)
    with cost.shared(-(-windows // settings.batch), loads=False):
        _runs(cost, shapes, models, half, tokens, settings.seqlen)
    cost.parts["models"] = shapes.stored * (2 if settings.kl else 1) + shapes.token_memory(settings.seqlen)
    return cost


def _runs(cost: StageCost, shapes: BlockShapes, models: list[str], half: str, tokens: float, seqlen: int) -> None:
    """A pass of all windows through every model; models: the kind of its products. half: that of the head."""
    arch = shapes.arch
    flops = arch.n_layers * shapes.product_flops(arch.taps())
    for kind in models:
        cost.work[kind] += tokens * flops  # type: ignore[assignment]
        cost.work[half] += tokens * 2.0 * shapes.embed  # type: ignore[assignment]
        cost.add(attention=tokens * arch.n_layers * shapes.attention_flops(seqlen))
        cost.add(elements=tokens * arch.n_layers * shapes.values)
