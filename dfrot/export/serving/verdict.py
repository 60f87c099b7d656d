"""Whether an engine computes what a folder declares: its losses, token by token, beside those of the definition.

Rounding activations moves the loss of every token a little, up or down. An engine that rounds them as declared moves
the same tokens by the same amounts; one that leaves them in 16 bits does not. So the *share* is the least-squares
coefficient s of `engine - sixteen = s (declared - sixteen)` over all tokens: 1 as declared, 0 in 16 bits. It tells
8-bit activations from 16-bit ones where perplexities differ by less than two engines do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.export.serving.definition import Declaration, Definition
from dfrot.export.serving.driving import EngineRun
from dfrot.quant.scheme import FULL

SERVED, OTHER_BITS, OTHER, REFUSED, MISSING = "as declared", "as W{w}A16", "something else", "refused", "not set up"
TOLERANCE = 0.02
"""Relative difference of perplexities up to which an engine computes the same; bfloat16 costs up to 1 %."""
GAP_TOLERANCE = 0.3
"""The same where activations are rounded, as a share of what the rounding costs (in logarithms): in bfloat16 a value
between two codes falls to either side, which 4-bit activations make a model feel."""
ROUNDED = 0.25
"""The share above which activations count as rounded. Measured: 0.39 to 0.89 where they are, for bfloat16 moves
tokens as well, and -0.01 to 0.025 where they are not."""


@dataclass(frozen=True)
class Verdict:
    """What an engine made of a folder."""

    word: str
    """served `as declared`, `as W4A16`, `something else`, `refused` or `not set up`."""
    detail: str = ""
    """Why, in a line."""
    perplexity: float | None = None
    """The engine's."""
    declared: float | None = None
    """The definition's, activations as declared."""
    sixteen: float | None = None
    """The definition's, activations in 16 bits."""
    share: float | None = None
    """Of the declared rounding that the engine does; None where 16 bits are declared."""

    @property
    def kept(self) -> bool:
        """Whether the engine does what the folder declares."""
        return self.word == SERVED

    @property
    def ratio(self) -> float | None:
        """The engine's perplexity over the definition's."""
        return None if self.perplexity is None or not self.declared else self.perplexity / self.declared

    def to_dict(self) -> dict[str, Any]:
        """What reports keep."""
        numbers = {key: getattr(self, key) for key in ("perplexity", "declared", "sixteen", "share", "ratio")}
        return {"verdict": self.word, "detail": self.detail, "kept": self.kept, **numbers}


def perplexity_of(losses: list[Tensor]) -> float:
    """Perplexity over all tokens of windows of equal length."""
    return float(torch.cat(losses).mean().exp())


def rounding_share(engine: Tensor, declared: Tensor, sixteen: Tensor) -> float:
    """The share of the declared rounding in an engine's losses, all float64 [n]; see the module."""
    expected = declared - sixteen
    return float(((engine - sixteen) * expected).sum() / expected.square().sum().clamp_min(1e-12))


def judge(run: EngineRun | None, declaration: Declaration, definition: Definition) -> Verdict:
    """The verdict on an engine's run; None: it is not set up."""
    if run is None:
        return Verdict(MISSING, "make engines")
    if run.refusal is not None:
        return Verdict(REFUSED, run.refusal)
    losses = [torch.tensor(window, dtype=torch.float64) for window in run.losses]
    theirs, declared = perplexity_of(losses), perplexity_of(definition.declared)
    sixteen = perplexity_of(definition.sixteen)
    if declaration.a_bits == FULL:
        word = SERVED if abs(theirs / declared - 1) <= TOLERANCE else OTHER
        return Verdict(word, _left_out(run, word), theirs, declared, sixteen)
    share = rounding_share(torch.cat(losses), torch.cat(definition.declared), torch.cat(definition.sixteen))
    tolerance = max(math.log1p(TOLERANCE), GAP_TOLERANCE * abs(math.log(declared / sixteen)))
    word, detail = OTHER, _left_out(run, OTHER)
    if share > ROUNDED and abs(math.log(theirs / declared)) <= tolerance:
        word, detail = SERVED, f"{share:.0%} of the rounding"
    elif share <= ROUNDED and abs(theirs / sixteen - 1) <= TOLERANCE:
        word = OTHER_BITS.format(w=declaration.w_bits)
        detail = f"activations stay in 16 bits ({share:.0%} of the rounding)"
    return Verdict(word, detail, theirs, declared, sixteen, share)


def _left_out(run: EngineRun, word: str) -> str:
    if word == OTHER and run.ignored:
        return f"left out {len(run.ignored)} tensors, among them {run.ignored[0]}"
    return ""
