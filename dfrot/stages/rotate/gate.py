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
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.experts import record_routing
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
) -> dict[str, Any]:
    """Compare two checkpoints on `tokens` int64 [1, S], with `r1` float64 [hidden, hidden] between them (None: they
    share a basis). images: image embeddings, inserted behind the first token.

    Returns the record: relative error and limit of the embedding, of every block and of the head, and how far
    the logits are apart end to end. Raises GateError naming the first part that differs by more than rounding."""
    arch = original.arch
    comparison = _Comparison(original, rotated, r1)
    # `hidden` belongs to the source model, `own` travels through the rotated model only
    hidden, own = comparison.embed(tokens, images)
    for layer in range(arch.n_layers):
        progress("gate", layer, arch.n_layers)
        hidden, own = comparison.block(layer, hidden, own)
    progress("gate", arch.n_layers, arch.n_layers)
    logits = comparison.logits(hidden[:, -LOGIT_TOKENS:], own[:, -LOGIT_TOKENS:])
    counted = {} if images is None else {"image_tokens": images.original.shape[1]}
    return {"tokens": tokens.shape[1], **counted, "parts": comparison.parts, "logits": logits}


class _Comparison:
    """Both models, and the figures of the parts that were judged so far."""

    def __init__(self, original: BlockRunner, rotated: BlockRunner, r1: Tensor | None) -> None:
        self.original, self.rotated, self.r1 = original, rotated, r1
        self.arch = original.arch
        self.parts: dict[str, Figures] = {}

    def rotate(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] of the source model in the basis of the rotated one, float32."""
        return hidden.float() if self.r1 is None else (hidden.double() @ self.r1).float()

    def judge(self, name: str, error: float, rounding: float) -> None:
        """Record a part's relative error; raises GateError when `rounding` does not explain it."""
        limit = min(MARGIN * rounding + FLOOR, CEILING)
        self.parts[name] = {"error": error, "rounding": rounding, "limit": significant(limit)}
        if not error <= limit:  # NaN is a difference too
            raise GateError(
                f"{name}: the rotated weights differ from the original by {error:.2g} (relative), rounding explains "
                f"{rounding:.2g}; nothing was published, run again and report it if it persists",
                limit=limit,
            )

    def embed(self, tokens: Tensor, images: GateImages | None) -> tuple[Tensor, Tensor]:
        """Judge the embedding (and the projector); returns hidden states [1, S, d] of both models."""
        embed = self.arch.spec.embed
        hidden, own = self.original.embed(tokens), self.rotated.embed(tokens)
        self._judge_rows(embed, own, self.rotate(hidden), _unit_roundoff(self.rotated, embed))
        if images is None:
            return hidden, own
        self._judge_rows("projector", images.rotated, self.rotate(images.original), images.unit)
        hidden = torch.cat([hidden[:, :1], images.original, hidden[:, 1:]], 1)
        own = torch.cat([own[:, :1], images.rotated, own[:, 1:]], 1)
        return hidden, own

    def _judge_rows(self, name: str, rows: Tensor, expected: Tensor, unit: float) -> None:
        error = (rows - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(TINY)
        self.judge(name, _rms(error), unit)

    def block(self, layer: int, hidden: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Judge block `layer`; returns the hidden states behind it."""
        arch, prefix = self.arch, self.arch.prefix(layer)
        after, source_choices = _run(self.original, self.original.block(layer), hidden)
        expected = self.rotate(after.double() - hidden.double())
        fed = self.rotate(hidden)
        block = self.rotated.block(layer)
        out, rotated_choices = _run(self.rotated, block, torch.cat([fed, own]))
        _jitter(block, arch, _unit_roundoff(self.rotated, prefix), layer)
        jittered, jittered_choices = _run(self.rotated, block, fed)
        del block
        same_experts = torch.ones(hidden.shape[:2], dtype=torch.bool)
        choices = zip(arch.spec.routers, source_choices, rotated_choices, jittered_choices)
        for router, *chosen in choices:
            same_experts &= self.router(arch.full(layer, router.name), *chosen)
        scale = expected.norm(dim=-1) + SMALLEST_UPDATE * fed.norm(dim=-1)
        error = ((out[:1] - fed - expected).norm(dim=-1) / scale)[same_experts]
        noise = ((jittered - out[:1]).norm(dim=-1) / scale)[same_experts]
        self.judge(prefix, _rms(error), _rms(noise))
        if not bool(same_experts.all()):
            self.parts[prefix]["rerouted"] = int((~same_experts).sum())
        return after, out[1:]

    def router(self, name: str, source: Choice, rotated: Choice, jittered: Choice) -> Tensor:
        """Judge a router by its scores. Returns bool [1, S]: tokens that went to the same experts in all three runs."""
        scores, experts = source
        tokens = len(scores)  # of the rotated run, the first half was fed the source's states
        norm = scores.norm(dim=-1).clamp_min(TINY)
        error = (rotated[0][:tokens] - scores).norm(dim=-1) / norm
        noise = (jittered[0] - rotated[0][:tokens]).norm(dim=-1) / norm
        self.judge(name, _rms(error), _rms(noise))
        wanted = experts.sort().values
        same = [(other.sort().values == wanted).all(-1) for other in (rotated[1][:tokens], jittered[1])]
        return (same[0] & same[1])[None]

    def logits(self, hidden: Tensor, own: Tensor) -> dict[str, float]:
        """Judge the head on exactly rotated states; then compare the logits of the whole models.

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
        self.judge(head, _rms(error), _rms(noise))
        final = rotated.logits(own, capped=False)
        return {
            "relative_error": _rms((final - expected).norm(dim=-1) / norm),
            "top1_agreement": float((final.argmax(-1) == expected.argmax(-1)).double().mean()),
        }


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
