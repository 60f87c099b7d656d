"""The gate: is the rotated checkpoint still the same model? Block by block, in float32, against the original.

Each rotated block is fed the exactly rotated hidden state of the original, so an error is seen where it is made and
not where it has been amplified. What rounding may do is measured, not guessed: the rotated block runs a second time
with its weights jittered by half a unit in the last place of the stored dtype. A block whose update differs from
the original's by much more than that jitter moves it holds different weights.

A mixture of experts is not continuous: where two experts score alike, rounding decides which one runs. Its router's
scores are judged for every token, its block on the tokens that went to the same experts all three times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.errors import GateError
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.experts import record_routing
from dfrot.stage_folder import Progress, silent

MARGIN = 4.0  # times the measured effect of rounding; right models measure 0.3 to 1.2
FLOOR = 2e-4  # relative error that float32 arithmetic alone may cause
BENEATH = 2.0**-10  # an update smaller than this share of its hidden state is judged as if it were that large
CEILING = 0.25  # no storage rounding explains more than this
LOGIT_TOKENS = 64  # positions whose logits are compared: bounds memory at large vocabularies

Figures = dict[str, float]


@dataclass(frozen=True)
class GateImages:
    """What the original's and the rotated model's projector say of the same images, float32 [1, n, hidden] each; unit:
    roundoff of the projector's stored dtype."""

    original: Tensor
    rotated: Tensor
    unit: float


def gate(
    original: BlockRunner,
    rotated: BlockRunner,
    tokens: Tensor,
    r1: Tensor | None,
    seen: GateImages | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare two checkpoints on `tokens` int64 [1, S], with `r1` float64 [hidden, hidden] between them (None: they
    share a basis). seen: image embeddings, put in behind the first token.

    Returns the evidence: relative error and limit of the embedding, of every block and of the head, and how far
    the logits are apart end to end. Raises GateError naming the first part that differs by more than rounding."""
    arch = original.arch
    found: dict[str, Figures] = {}
    hidden, own = original.embed(tokens), rotated.embed(tokens)  # `own` travels through the rotated model only
    fed = _turn(hidden, r1)
    error = (own - fed).norm(dim=-1) / fed.norm(dim=-1).clamp_min(1e-30)
    _judge(found, arch.spec.embed, _rms(error), _unit(rotated, arch.spec.embed))
    if seen is not None:
        fed = _turn(seen.original, r1)
        error = (seen.rotated - fed).norm(dim=-1) / fed.norm(dim=-1).clamp_min(1e-30)
        _judge(found, "projector", _rms(error), seen.unit)
        hidden, own = (
            torch.cat([x[:, :1], images, x[:, 1:]], 1) for x, images in ((hidden, seen.original), (own, seen.rotated))
        )
    for layer in range(arch.n_layers):
        progress("gate", layer, arch.n_layers)
        after, chosen = _run(original, original.block(layer), hidden)
        expected = _turn(after.double() - hidden.double(), r1)
        fed = _turn(hidden, r1)
        block = rotated.block(layer)
        out, again = _run(rotated, block, torch.cat([fed, own]))
        _jitter(block, arch, _unit(rotated, arch.prefix(layer)), layer)
        shaken, third = _run(rotated, block, fed)
        del block
        alike = torch.ones(hidden.shape[:2], dtype=torch.bool)
        for router, first, second, last in zip(arch.spec.routers, chosen, again, third):
            alike &= _routed(found, arch.full(layer, router.name), first, second, last)
        scale = expected.norm(dim=-1) + BENEATH * fed.norm(dim=-1)
        error = ((out[:1] - fed - expected).norm(dim=-1) / scale)[alike]
        noise = ((shaken - out[:1]).norm(dim=-1) / scale)[alike]
        _judge(found, arch.prefix(layer), _rms(error), _rms(noise))
        if not bool(alike.all()):
            found[arch.prefix(layer)]["rerouted"] = int((~alike).sum())
        hidden, own = after, out[1:]
    progress("gate", arch.n_layers, arch.n_layers)
    logits = _logits(found, original, rotated, hidden[:, -LOGIT_TOKENS:], own[:, -LOGIT_TOKENS:], r1)
    images = {} if seen is None else {"image_tokens": seen.original.shape[1]}
    return {"tokens": tokens.shape[1], **images, "parts": found, "logits": logits}


def _run(runner: BlockRunner, block: nn.Module, hidden: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The block's output, and what its router chose (nothing without one)."""
    with record_routing(block, runner.arch) as chosen:
        return runner.run(block, hidden), chosen


def _routed(
    found: dict[str, Figures],
    name: str,
    original: tuple[Tensor, Tensor],
    rotated: tuple[Tensor, Tensor],
    shaken: tuple[Tensor, Tensor],
) -> Tensor:
    """Judge a router by its scores; which tokens, bool [1, S], it sent to the same experts in all three runs."""
    scores, experts = original
    tokens = len(scores)  # of the rotated run, the first half was fed the original's states
    size = scores.norm(dim=-1).clamp_min(1e-30)
    error = (rotated[0][:tokens] - scores).norm(dim=-1) / size
    noise = (shaken[0] - rotated[0][:tokens]).norm(dim=-1) / size
    _judge(found, name, _rms(error), _rms(noise))
    same = [(other.sort().values == experts.sort().values).all(-1) for other in (rotated[1][:tokens], shaken[1])]
    return (same[0] & same[1])[None]


def _logits(
    found: dict[str, Figures],
    original: BlockRunner,
    rotated: BlockRunner,
    hidden: Tensor,
    own: Tensor,
    r1: Tensor | None,
) -> dict[str, float]:
    """Judge the head on exactly rotated states; then the whole path against the whole path. Logits are compared
    before any cap, which would hide differences."""
    head = original.arch.spec.head.name
    stored = rotated.arch.spec.embed if rotated.arch.tied else head
    expected = original.logits(hidden, capped=False)
    fed = _turn(hidden, r1)
    size = expected.norm(dim=-1).clamp_min(1e-30)
    # rounding every weight by a relative uniform error moves the logits by unit / sqrt 3 * |W| |x|, summed in squares
    squares = sum(part.double().square().sum(0) for part in rotated.head_rows())
    noise = (rotated.normed(fed).double().square() @ squares).sqrt() * (_unit(rotated, stored) / 3**0.5) / size
    noise = noise / abs(original.arch.scalar("logits"))
    error = (rotated.logits(fed, capped=False) - expected).norm(dim=-1) / size
    _judge(found, head, _rms(error), _rms(noise))
    final = rotated.logits(own, capped=False)
    return {
        "relative_error": _rms((final - expected).norm(dim=-1) / size),
        "top1_agreement": float((final.argmax(-1) == expected.argmax(-1)).double().mean()),
    }


def _judge(found: dict[str, Figures], name: str, error: float, rounding: float) -> None:
    limit = min(MARGIN * rounding + FLOOR, CEILING)
    found[name] = {"error": error, "rounding": rounding, "limit": float(f"{limit:.3g}")}
    if not error <= limit:  # NaN is a difference too
        raise GateError(
            f"{name}: the rotated weights differ from the original by {error:.2g} (relative), rounding explains "
            f"{rounding:.2g}; nothing was published, run again and report it if it persists"
        )


def _turn(hidden: Tensor, r1: Tensor | None) -> Tensor:
    return hidden.float() if r1 is None else (hidden.double() @ r1).float()


def _rms(values: Tensor) -> float:
    """To three digits: beyond them it is the order of summation that speaks, and evidence must not vary with it."""
    return float(f"{float(values.double().square().mean().sqrt()):.3g}")


def _unit(runner: BlockRunner, prefix: str) -> float:
    """Unit roundoff of the coarsest dtype stored under `prefix`."""
    entries = runner.checkpoint.entries.items()
    return max(torch.finfo(entry.dtype).eps for name, entry in entries if name.startswith(prefix + ".")) / 2


def _jitter(block: nn.Module, arch: BoundArch, unit: float, seed: int) -> None:
    """Multiply every weight that was rounded by 1 + unit * uniform(-1, 1), in place."""
    exact = {norm.name for norm in arch.spec.norms} | set(arch.spec.head_norms)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in block.named_parameters():
        if name.rpartition(".")[0] not in exact:
            for part in torch.split(parameter.data.view(-1), 1 << 22):
                part.mul_(torch.rand(part.shape, generator=generator).mul_(2 * unit).add_(1 - unit))
