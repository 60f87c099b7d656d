"""The gate: is the rotated checkpoint still the same model? Block by block, in float32, against the original.

Each rotated block is fed the exactly rotated hidden state of the original, so an error is seen where it is made and
not where it has been amplified. What rounding may do is measured, not guessed: the rotated block runs a second time
with its weights jittered by half a unit in the last place of the stored dtype. A block whose update differs from
the original's by much more than that jitter moves it holds different weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.errors import GateError
from dfrot.hf.blocks import BlockRunner
from dfrot.stage import Progress, silent

MARGIN = 4.0  # times the measured effect of rounding; right models measure 0.3 to 1.2
FLOOR = 2e-4  # relative error that float32 arithmetic alone may cause
BENEATH = 2.0**-10  # an update smaller than this share of its hidden state is judged as if it were that large
CEILING = 0.25  # no storage rounding explains more than this
LOGIT_TOKENS = 64  # positions whose logits are compared: bounds memory at large vocabularies

Figures = dict[str, float]


def gate(
    original: BlockRunner, rotated: BlockRunner, tokens: Tensor, r1: Tensor, *, progress: Progress = silent
) -> dict[str, Any]:
    """Compare two checkpoints on `tokens` int64 [1, S], with `r1` float64 [hidden, hidden] between them.

    Returns the evidence: relative error and limit of the embedding, of every block and of the head, and how far
    the logits are apart end to end. Raises GateError naming the first part that differs by more than rounding."""
    arch = original.arch
    found: dict[str, Figures] = {}
    hidden, own = original.embed(tokens), rotated.embed(tokens)  # `own` travels through the rotated model only
    fed = _turn(hidden, r1)
    error = (own - fed).norm(dim=-1) / fed.norm(dim=-1).clamp_min(1e-30)
    _judge(found, arch.spec.embed, _rms(error), _unit(rotated, arch.spec.embed))
    for layer in range(arch.n_layers):
        progress("gate", layer, arch.n_layers)
        after = original.run(original.block(layer), hidden)
        expected = _turn(after.double() - hidden.double(), r1)
        fed = _turn(hidden, r1)
        block = rotated.block(layer)
        out = rotated.run(block, torch.cat([fed, own]))
        _jitter(block, arch, _unit(rotated, arch.prefix(layer)), layer)
        shaken = rotated.run(block, fed)
        del block
        scale = expected.norm(dim=-1) + BENEATH * fed.norm(dim=-1)
        error = (out[:1] - fed - expected).norm(dim=-1) / scale
        noise = (shaken - out[:1]).norm(dim=-1) / scale
        _judge(found, arch.prefix(layer), _rms(error), _rms(noise))
        hidden, own = after, out[1:]
    progress("gate", arch.n_layers, arch.n_layers)
    logits = _logits(found, original, rotated, hidden[:, -LOGIT_TOKENS:], own[:, -LOGIT_TOKENS:], r1)
    return {"tokens": tokens.shape[1], "parts": found, "logits": logits}


def _logits(
    found: dict[str, Figures], original: BlockRunner, rotated: BlockRunner, hidden: Tensor, own: Tensor, r1: Tensor
) -> dict[str, float]:
    """Judge the head on exactly rotated states; then the whole path against the whole path."""
    head = original.arch.spec.head.name
    expected = original.logits(hidden)
    fed = _turn(hidden, r1)
    size = expected.norm(dim=-1).clamp_min(1e-30)
    # rounding every weight by a relative uniform error moves the logits by unit / sqrt 3 * |W| |x|, summed in squares
    squares = sum(part.double().square().sum(0) for part in rotated.head_rows())
    noise = (rotated.normed(fed).double().square() @ squares).sqrt() * (_unit(rotated, head) / 3**0.5) / size
    noise = noise / abs(original.arch.scalar("logits"))
    error = (rotated.logits(fed) - expected).norm(dim=-1) / size
    _judge(found, head, _rms(error), _rms(noise))
    final = rotated.logits(own)
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


def _turn(hidden: Tensor, r1: Tensor) -> Tensor:
    return (hidden.double() @ r1).float()


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
