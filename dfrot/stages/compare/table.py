"""From measured cells to the report: means over seeds, paired intervals, differences between rotations, claims.

Two spreads matter and are kept apart: over evaluation windows (would another text give the same result?), as paired
Student t intervals on the seed-averaged loss per window, and over seeds (would another draw of the rotation?), as
the standard deviation of the perplexity.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.evaluate.intervals import Interval, ratio_interval
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.compare.cells import BASELINE, LABELS, Method

PAIRS: tuple[tuple[Method, Method], ...] = (
    (("rtn", "hadamard"), ("rtn", "orthogonal")),
    (("rtn", "dfrot"), ("rtn", "orthogonal")),
    (("rtn", "dfrot"), ("rtn", "hadamard")),
    (("gptq", "dfrot"), ("gptq", "hadamard")),
    (("tuned", "dfrot"), ("gptq", "dfrot")),
)
"""Methods whose difference the report states."""
RTN: Method = ("rtn", "none")
RTN_COST = 1.25  # perplexity ratio to bf16 that rounding without rotation is expected to cost at least
W4A4KV4_COST = 1.03  # perplexity ratio to bf16 that the best methods are expected to cost at most
KERNEL_BITS = 4  # weight bits that run on integer kernels; others are simulated
Measurement = Mapping[str, Any]
"""What was measured on one cell."""
Runs = Sequence[Measurement]
"""The cells of one row: one per seed."""


def summarise(
    cells: Mapping[str, Measurement], schemes: Mapping[str, QuantScheme], refinements: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as JSON: `dataset`, `protocol`, `tables` by scheme, `objective` of the refinements, `cells`.

    cells: measurements by cell name; refinements: records by group name."""
    base = cells[BASELINE]
    return {
        "dataset": base["dataset"],
        "protocol": base["protocol"],
        "tables": {name: _table(cells, name, scheme) for name, scheme in schemes.items()},
        "objective": [_objective(name, record) for name, record in refinements.items()],
        "cells": dict(cells),
    }


def _table(cells: Mapping[str, Measurement], name: str, scheme: QuantScheme) -> dict[str, Any]:
    """Rows, differences and claims of one scheme."""
    base = [cells[BASELINE]]
    runs = {method: measured for method in LABELS if (measured := _runs(cells, name, method))}
    rows = [_row("bf16", base, base, None)]
    rows += [_row(LABELS[method], measured, base, runs.get(RTN)) for method, measured in runs.items()]
    differences = [_difference(runs, method, other) for method, other in PAIRS if method in runs and other in runs]
    return {
        "rows": rows,
        "differences": differences,
        "claims": _claims(runs, base, scheme),
        "simulated": scheme.w_bits != KERNEL_BITS,
    }


def _runs(cells: Mapping[str, Measurement], scheme: str, method: Method) -> list[Measurement]:
    """The cells of one row, one per seed, in the order they were made."""
    stem = f"{scheme}-{method[0]}-{method[1]}"
    return [cell for name, cell in cells.items() if name == stem or name.startswith(stem + "-")]


def _nll(runs: Runs) -> Tensor:
    """Loss per window, averaged over seeds, float64 [windows]."""
    return torch.tensor([run["window_nll"] for run in runs], dtype=torch.float64).mean(0)


def _as_list(interval: Interval) -> list[float] | None:
    """An interval as JSON."""
    return None if interval is None else list(interval)


def _row(label: str, runs: Runs, base: Runs, rtn: Runs | None) -> dict[str, Any]:
    """One method. base: the baseline; rtn: rounding without rotation, where it was measured."""
    values = [float(run["perplexity"]) for run in runs]
    ratio, interval = ratio_interval(_nll(runs), _nll(base))
    speeds = [run["decode_tokens_per_second"] for run in runs if run.get("decode_tokens_per_second")]
    row = {
        "method": label,
        "seeds": len(runs),
        "perplexity": statistics.fmean(values),
        "perplexity_by_seed": values,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "ratio_to_bf16": ratio,
        "ratio_ci": None if runs is base else _as_list(interval),
        "bytes_on_disk": runs[0]["bytes_on_disk"],
        "tokens_per_second": max(float(run["tokens_per_second"]) for run in runs),
        "decode_tokens_per_second": max(speeds) if speeds else None,
        "fallbacks": sorted({name for run in runs for name in run.get("fallbacks", {})}),
    }
    if rtn is not None and runs is not rtn:
        gain, gain_interval = ratio_interval(_nll(runs), _nll(rtn))
        row["ratio_to_rtn"], row["ratio_to_rtn_ci"] = gain, _as_list(gain_interval)
    return row


def _difference(runs: Mapping[Method, Runs], method: Method, other: Method) -> dict[str, Any]:
    """`method` against `other`: perplexity ratio, its interval over windows, and the ratio seed by seed."""
    ratio, interval = ratio_interval(_nll(runs[method]), _nll(runs[other]))
    by_seed = [float(a["perplexity"]) / float(b["perplexity"]) for a, b in zip(runs[method], runs[other])]
    return {
        "method": LABELS[method],
        "against": LABELS[other],
        "ratio": ratio,
        "ratio_ci": _as_list(interval),
        "ratio_by_seed": by_seed,
        "seeds_agree": all(value < 1 for value in by_seed) or all(value > 1 for value in by_seed),
    }


def _claims(runs: Mapping[Method, Runs], base: Runs, scheme: QuantScheme) -> list[dict[str, Any]]:
    """What the table is expected to show, with the number that decides it; a failed claim is stated, not hidden.

    "Clearly" means: the whole paired interval over windows lies on that side, and so does every seed."""
    rtn = runs[RTN]
    ratio, _ = ratio_interval(_nll(rtn), _nll(base))
    claims = [{"claim": f"no rotation costs at least {RTN_COST} x bf16", "value": ratio, "holds": ratio >= RTN_COST}]
    for method in (method for method in runs if method[0] == "rtn" and method != RTN):
        claims.append(_below(f"{LABELS[method]} clearly below RTN", runs[method], rtn))
    for rotation in ("hadamard", "dfrot"):
        gptq, rounded = ("gptq", rotation), ("rtn", rotation)
        if gptq in runs and rounded in runs:
            claims.append(_below(f"{LABELS[gptq]} below {LABELS[rounded]}", runs[gptq], runs[rounded]))
    for method in (("gptq", "dfrot"), ("tuned", "dfrot")):
        if method in runs and (scheme.w_bits, scheme.a_bits, scheme.kv_bits) == (4, 4, 4):
            ratio, _ = ratio_interval(_nll(runs[method]), _nll(base))
            claim = f"{LABELS[method]} at most {W4A4KV4_COST} x bf16"
            claims.append({"claim": claim, "value": ratio, "holds": ratio <= W4A4KV4_COST})
    return claims


def _below(claim: str, runs: Runs, others: Runs) -> dict[str, Any]:
    """The claim that `runs` have a lower perplexity than `others`."""
    ratio, interval = ratio_interval(_nll(runs), _nll(others))
    counterparts = list(others) * len(runs) if len(others) == 1 else others
    every_seed = all(float(a["perplexity"]) < float(b["perplexity"]) for a, b in zip(runs, counterparts))
    holds = every_seed and ratio < 1 and (interval is None or interval[1] < 1)
    return {"claim": claim, "value": ratio, "ci": _as_list(interval), "holds": holds}


def _objective(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A refinement against its Hadamard start: error per token of massive and of common tokens."""

    def ratio(kind: str) -> float | None:
        start = float(record[f"{kind}_error_start"])
        return float(record[f"{kind}_error"]) / start if start > 0 and math.isfinite(start) else None

    accepted = record.get("accepted", [])
    return {
        "rotation": name,
        "seed": record["seed"],
        "a_bits": record["a_bits"],
        "gamma": record["gamma"],
        "massive_tokens": record["n_massive"],
        "massive_error_ratio": ratio("massive"),
        "common_error_ratio": ratio("common"),
        "objective_ratio": record["objective"] / record["objective_start"] if record["objective_start"] else None,
        "never_rises": all(later <= earlier for earlier, later in itertools.pairwise(accepted)),
    }
