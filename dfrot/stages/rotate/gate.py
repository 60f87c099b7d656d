"""The equivalence gate: is the rotated checkpoint still the same model? Block by block, in float32, against the source.

Each rotated block is fed the exactly rotated hidden state of the source model, so an error shows where it is made and
not where it has been amplified. What rounding may do is measured, not guessed: the rotated block runs a second time
with its weights jittered by half a unit in the last place of the stored dtype. A block whose update differs from
the source's by much more than that jitter moves it holds different weights.

A mixture of experts is not continuous: where two experts score alike, rounding decides which one runs. Its router's
scores are judged for every token, its block on the tokens that went to the same experts in all three runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.errors import GateError
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.experts import record_routing
from dfrot.runtime.transformers_model import computes_no_numbers
from dfrot.stages.rotate.digits import significant

MARGIN = 4.0  # times the measured effect of rounding; right models measure 0.3 to 1.2
FLOOR = 2e-4  # relative error that float32 arithmetic alone may cause
SMALLEST_UPDATE = 2.0**-10  # an update smaller than this share of its hidden state is judged as if it were that large
CEILING = 0.25  # no storage rounding explains more than this
LOGIT_TOKENS = 64  # positions whose logits are compared: bounds memory at large vocabularies
JITTER_CHUNK = 1 << 22  # weights that are jittered at a time: bounds the temporary noise
TINY = 1e-30  # lower bound of norms that errors are divided by

Figures = dict[str, float]
Choice = tuple[Tensor, Tensor]
"""What a router chose: scores [tokens, experts] and expert indices [tokens, k]."""


@dataclass(frozen=True)
class GateImages:
    """What both models' projectors make of the same images."""

    original: Tensor
    """float32 [1, n, hidden]: embeddings by the source model's projector."""
    rotated: Tensor
    """float32 [1, n, hidden]: embeddings by the rotated model's projector."""
    unit: float
    """Unit roundoff of the projector's stored dtype."""


def gate(
    original: BlockRunner,
    rotated: BlockRunner,
    tokens: Tensor,
    r1: Tensor | None,
    images: GateImages | None = None,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
) -> dict[str, Any]:
    """Compare two checkpoints on `tokens` int64 [1, S], with `r1` float64 [hidden, hidden] between them (None: they
    share a basis). images: image embeddings, inserted behind the first token; the first rank's count. ranks: processes
    that share the blocks.

    Returns the record: relative error and limit of the embedding, of every block and of the head, and how far
    the logits are apart end to end. Raises GateError naming the first part that differs by more than rounding,
    InputError where the source model itself computes NaN or Inf."""
    layers = original.arch.n_layers
    comparison = _Comparison(original, rotated, r1)
    embedded = comparison.embed(tokens, images) if ranks.first else None
    comparison.judge(ranks)
    # `hidden` belongs to the source model, `own` travels through the rotated model only
    hidden, own = ranks.broadcast(embedded)
    for begin in range(0, layers, ranks.size):
        progress("gate", begin, layers)
        batch = range(layers)[begin : begin + ranks.size]
        block = _BlockComparison(comparison, batch[ranks.rank]) if ranks.rank < len(batch) else None
        if block is not None and ranks.size > 1:
            block.load()  # while others run
        for rank in range(len(batch)):
            ran = block.run(hidden, own) if block is not None and rank == ranks.rank else None
            hidden, own = ranks.broadcast(ran, rank)
        if block is not None:
            block.measure()
        del block
        comparison.judge(ranks)
    progress("gate", layers, layers)
    compared = comparison.logits(hidden[:, -LOGIT_TOKENS:], own[:, -LOGIT_TOKENS:]) if ranks.first else None
    comparison.judge(ranks)
    logits = ranks.broadcast(compared)
    counted = {} if images is None else {"image_tokens": images.original.shape[1]}
    return {"tokens": tokens.shape[1], **counted, "parts": comparison.parts, "logits": logits}


class _Comparison:
    """Both models, and the figures of the parts that were judged so far."""

    def __init__(self, original: BlockRunner, rotated: BlockRunner, r1: Tensor | None) -> None:
        self.original, self.rotated, self.r1 = original, rotated, r1
        self.arch = original.arch
        self.parts: dict[str, Figures] = {}
        self._measured: list[tuple[str, float, float, bool, Figures]] = []

    def rotate(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] of the source model in the basis of the rotated one, float32."""
        return hidden.float() if self.r1 is None else (hidden.double() @ self.r1).float()

    def measured(self, name: str, error: float, rounding: float, source: Tensor, **more: float) -> None:
        """Note a part's relative error, and what rounding may do, for `judge`. source: norms of what the source model
        computes there."""
        self._measured.append((name, error, rounding, bool(source.isfinite().all()), more))

    def judge(self, ranks: Ranks) -> None:
        """Record what the ranks have measured. Raises, on all of them, InputError for a part in which the source model
        itself computes no numbers, GateError for one whose error rounding does not explain."""
        parts, self._measured = ranks.gather_everywhere(self._measured), []
        for name, error, rounding, finite, more in [entry for part in parts for entry in part]:
            if not finite:
                raise computes_no_numbers(self.original.checkpoint.path, name)
            self._judge(name, error, rounding)
            self.parts[name] |= more

    def _judge(self, name: str, error: float, rounding: float) -> None:
        limit = min(MARGIN * rounding + FLOOR, CEILING)
        self.parts[name] = {"error": error, "rounding": rounding, "limit": significant(limit)}
        if not error <= limit:  # NaN is a difference too
            raise GateError(
                f"{name}: the rotated weights differ from the original by {error:.2g} (relative), rounding explains "
                f"{rounding:.2g}; nothing was published, run again and report it if it persists",
                limit=limit,
            )

    def embed(self, tokens: Tensor, images: GateImages | None) -> tuple[Tensor, Tensor]:
        """Measure the embedding (and the projector); returns hidden states [1, S, d] of both models."""
        embed = self.arch.spec.embed
        hidden, own = self.original.embed(tokens), self.rotated.embed(tokens)
        self._measure_rows(embed, own, self.rotate(hidden), _unit_roundoff(self.rotated, embed))
        if images is None:
            return hidden, own
        self._measure_rows("projector", images.rotated, self.rotate(images.original), images.unit)
        hidden = torch.cat([hidden[:, :1], images.original, hidden[:, 1:]], 1)
        own = torch.cat([own[:, :1], images.rotated, own[:, 1:]], 1)
        return hidden, own

    def _measure_rows(self, name: str, rows: Tensor, expected: Tensor, unit: float) -> None:
        norm = expected.norm(dim=-1)
        error = (rows - expected).norm(dim=-1) / norm.clamp_min(TINY)
        self.measured(name, _rms(error), unit, norm)

    def logits(self, hidden: Tensor, own: Tensor) -> dict[str, float]:
        """Measure the head on exactly rotated states; then compare the logits of the whole models.

        Logits are compared before any cap, which would hide differences."""
        head, rotated = self.arch.spec.head.name, self.rotated
        stored = rotated.arch.spec.embed if rotated.arch.tied else head
        expected = self.original.logits(hidden, capped=False)
        fed = self.rotate(hidden)
        norm = expected.norm(dim=-1).clamp_min(TINY)
        # rounding each weight by a relative uniform error moves logits by unit / sqrt 3 * |W| |x|, summed in squares
        squares = sum(part.double().square().sum(0) for part in rotated.head_rows())
        noise = (rotated.normed(fed).double().square() @ squares).sqrt()
        noise = noise * (_unit_roundoff(rotated, stored) / 3**0.5) / norm
        noise = noise / abs(self.arch.scalar("logits"))
        error = (rotated.logits(fed, capped=False) - expected).norm(dim=-1) / norm
        self.measured(head, _rms(error), _rms(noise), norm)
        final = rotated.logits(own, capped=False)
        return {
            "relative_error": _rms((final - expected).norm(dim=-1) / norm),
            "top1_agreement": float((final.argmax(-1) == expected.argmax(-1)).double().mean()),
        }


class _BlockComparison:
    """One block of both models."""

    def __init__(self, comparison: _Comparison, layer: int) -> None:
        self.comparison, self.layer = comparison, layer
        self.blocks: list[nn.Module] = []  # those of both models where they are loaded beforehand

    def load(self) -> None:
        """Load both models' weights."""
        self.blocks = [runner.block(self.layer) for runner in (self.comparison.original, self.comparison.rotated)]

    def run(self, hidden: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Run both models; returns the hidden states [1, S, d] behind the block."""
        original, rotated, layer = self.comparison.original, self.comparison.rotated, self.layer
        after, self.source_choices = _run(
            original, self.blocks.pop(0) if self.blocks else original.block(layer), hidden
        )
        self.expected = self.comparison.rotate(after.double() - hidden.double())
        self.fed = self.comparison.rotate(hidden)
        self.rotated = self.blocks.pop() if self.blocks else rotated.block(layer)
        out, self.rotated_choices = _run(rotated, self.rotated, torch.cat([self.fed, own]))
        self.out = out[:1]
        return after, out[1:]

    def measure(self) -> None:
        """Measure what `run` computed against the effect of rounding."""
        arch, prefix, fed = self.comparison.arch, self.comparison.arch.prefix(self.layer), self.fed
        rotated = self.comparison.rotated
        _jitter(self.rotated, arch, _unit_roundoff(rotated, prefix), self.layer)
        jittered, jittered_choices = _run(rotated, self.rotated, fed)
        del self.rotated
        same_experts = torch.ones(fed.shape[:2], dtype=torch.bool)
        choices = zip(arch.spec.routers, self.source_choices, self.rotated_choices, jittered_choices)
        for router, *chosen in choices:
            same_experts &= self._router(arch.full(self.layer, router.name), *chosen)
        scale = self.expected.norm(dim=-1) + SMALLEST_UPDATE * fed.norm(dim=-1)
        error = ((self.out - fed - self.expected).norm(dim=-1) / scale)[same_experts]
        noise = ((jittered - self.out).norm(dim=-1) / scale)[same_experts]
        others = int((~same_experts).sum())
        self.comparison.measured(prefix, _rms(error), _rms(noise), scale, **({"rerouted": others} if others else {}))

    def _router(self, name: str, source: Choice, rotated: Choice, jittered: Choice) -> Tensor:
        """Measure a router by its scores. Returns bool [1, S]: tokens that went to the same experts in all runs."""
        scores, experts = source
        tokens = len(scores)  # of the rotated run, the first half was fed the source's states
        norm = scores.norm(dim=-1).clamp_min(TINY)
        error = (rotated[0][:tokens] - scores).norm(dim=-1) / norm
        noise = (jittered[0] - rotated[0][:tokens]).norm(dim=-1) / norm
        self.comparison.measured(name, _rms(error), _rms(noise), norm)
        wanted = experts.sort().values
        same = [(other.sort().values == wanted).all(-1) for other in (rotated[1][:tokens], jittered[1])]
        return (same[0] & same[1])[None]


def _run(runner: BlockRunner, block: nn.Module, hidden: Tensor) -> tuple[Tensor, list[Choice]]:
    """The block's output, and what its routers chose (nothing without one)."""
    with record_routing(block, runner.arch) as chosen:
        return runner.run(block, hidden), chosen


def _rms(values: Tensor) -> float:
    """Root mean square, as it is recorded."""
    return float(significant(float(values.double().square().mean().sqrt())))


def _unit_roundoff(runner: BlockRunner, prefix: str) -> float:
    """Unit roundoff of the coarsest dtype that is stored under `prefix`."""
    entries = runner.checkpoint.entries.items()
    return max(torch.finfo(entry.dtype).eps for name, entry in entries if name.startswith(prefix + ".")) / 2


def _jitter(block: nn.Module, arch: BoundArch, unit: float, seed: int) -> None:
    """Multiply every weight that was rounded by 1 + unit * uniform(-1, 1), in place."""
    exact = {norm.name for norm in arch.spec.norms} | set(arch.spec.head_norms)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in block.named_parameters():
        if name.rpartition(".")[0] not in exact:
            for part in torch.split(parameter.data.view(-1), JITTER_CHUNK):
                part.mul_(torch.rand(part.shape, generator=generator).mul_(2 * unit).add_(1 - unit))
