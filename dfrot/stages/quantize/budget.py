"""`dfq quantize --budget`: which inputs are read in 8 bits, so that the mean number of bits stays within a budget.

Linears that share an input (q, k and v; gate and up) share its bits. An input counts as often as it is multiplied: by
the elements of the weights that it meets. The mean is over the products of the blocks' quantized linears. Weights keep
their bits, so that a raised input costs no memory; what it gains is measured (dfrot/calib/input_costs.py) in a pass of
its own, before any weight is rounded, and the best choice is a knapsack. The choice is journaled, so that an
interrupted run goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dfrot.arch import BoundArch, Tap
from dfrot.calib.input_costs import cost_windows, input_costs
from dfrot.progress import Progress
from dfrot.quant.budget import best_choice
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.ranks.single import Ranks
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage
from dfrot.stages.quantize.layout import CheckpointLayout
from dfrot.stages.quantize.plan import QuantizePlan, clips_at
from dfrot.stages.quantize.propagate import quantized_taps
from dfrot.stages.quantize.settings import RAISED_BITS
from dfrot.stages.sensitivity.variants import tap_label

UNIT = "budget"
DIGITS = 6  # of costs in the record


@dataclass(frozen=True)
class _Candidate:
    """An input whose bits can be raised."""

    layer: int
    tap: Tap
    names: tuple[str, ...]
    """Full names of the quantized linears that it feeds."""
    products: int
    """Elements of their weights."""


def with_budget(stage: Stage, plan: QuantizePlan, ranks: Ranks, progress: Progress) -> QuantizePlan:
    """`plan` with the bits of every input decided, where a budget was given; the same plan otherwise."""
    if plan.settings.budget is None:
        return plan
    if not stage.done(UNIT):
        stage.mark(UNIT, _decide(stage, plan, progress) if ranks.first else None)
    raised, raised_clips = raised_names(stage.recall(UNIT)), _raised_clips(plan)
    clips = {**plan.config.a_clips, **{name: raised_clips[name] for name in raised}}
    config = replace(
        plan.config,
        a_bits=dict.fromkeys(raised, RAISED_BITS),
        a_clips={name: clip for name, clip in clips.items() if clip != plan.layout.scheme.a_clip},
    )
    return replace(plan, config=config, layout=CheckpointLayout(plan.checkpoint, plan.arch, config))


def raised_names(rows: list[dict[str, Any]]) -> list[str]:
    """Full names of the linears whose input has more bits. rows: what the unit recorded."""
    return [name for row in rows if row["bits"] == RAISED_BITS for name in row["linears"]]


def budget_record(stage: Stage, plan: QuantizePlan) -> dict[str, Any]:
    """What `stage.json` says of the budget: {"budget": {"bits", "mean", "inputs"}}; empty without one.

    inputs: for every layer and input its `linears`, `bits`, `products` and `costs` by bits, in nats per token."""
    if plan.settings.budget is None:
        return {}
    rows = stage.recall(UNIT)
    products = sum(row["products"] for row in rows)
    mean = sum(row["products"] * row["bits"] for row in rows) / products
    return {"budget": {"bits": plan.settings.budget, "mean": round(mean, 4), "inputs": rows}}


def _decide(stage: Stage, plan: QuantizePlan, progress: Progress) -> list[dict[str, Any]]:
    """The rows of the record, in the order of computation."""
    assert plan.calibration is not None
    assert plan.config.scheme is not None
    assert plan.settings.budget is not None
    runner, bits = BlockRunner(plan.checkpoint, plan.arch), plan.config.scheme.a_bits
    clips = _raised_clips(plan)

    def ways(layer: int, tap: Tap) -> list[QuantScheme]:
        name = plan.arch.full(layer, tap.linears[0].name)
        low = plan.config.activations_of(name)
        return [low, replace(low, a_bits=RAISED_BITS, a_clip=clips[name])]

    windows = cost_windows(plan.calibration.tokens())
    costs = input_costs(runner, windows, stage.folder, ways, plan.config.sink_tokens, progress)
    candidates = _candidates(plan.arch, plan.config)
    pairs = [costs[candidate.layer][candidate.tap.name] for candidate in candidates]
    sizes = [candidate.products for candidate in candidates]
    capacity = int((plan.settings.budget - bits) / (RAISED_BITS - bits) * sum(sizes))
    raised = set(best_choice([low - high for low, high in pairs], sizes, capacity))
    return [
        {
            "layer": candidate.layer,
            "input": tap_label(candidate.tap),
            "linears": list(candidate.names),
            "bits": RAISED_BITS if number in raised else bits,
            "products": candidate.products,
            "costs": {str(bits): _rounded(low), str(RAISED_BITS): _rounded(high)},
        }
        for number, (candidate, (low, high)) in enumerate(zip(candidates, pairs))
    ]


def _rounded(cost: float) -> float:
    return float(f"{cost:.{DIGITS}g}")


def _candidates(arch: BoundArch, config: DfqConfig) -> list[_Candidate]:
    """The inputs that are rounded, in the order of computation."""
    candidates = []
    for layer in range(arch.n_layers):
        for tap in quantized_taps(arch, config, layer):
            rows = sum(arch.sizes[linear.rows] for linear in tap.linears)
            names = tuple(arch.full(layer, linear.name) for linear in tap.linears)
            candidates.append(_Candidate(layer, tap, names, rows * arch.sizes[tap.linears[0].cols]))
    return candidates


def _raised_clips(plan: QuantizePlan) -> dict[str, float]:
    """The clip ratio of every linear of the blocks where its input is raised."""
    return clips_at(plan.arch, plan.settings, plan.calibration, RAISED_BITS)
