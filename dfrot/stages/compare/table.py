"""From measured cells to the report: means over seeds, paired intervals, differences between rotations, claims.

Two spreads matter and are kept apart: over evaluation windows (would another text give the same result?), as paired
Student t intervals on the seed-averaged loss per window, and over seeds (would another draw of the rotation?), as
the standard deviation of the perplexity.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.evaluate.intervals import as_list, mean_interval, ratio_interval
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.compare.cells import BASELINE, ComparisonCell
from dfrot.stages.compare.rows import ROWS

RTN = "rtn-none"
ROUNDED = ("rtn-orthogonal", "rtn-hadamard", "rtn-dfrot")
"""Rows that are expected clearly below RTN."""
BELOW = (("gptq-hadamard", "rtn-hadamard"), ("gptq-dfrot", "rtn-dfrot"))
"""Rows, the first of which is expected below the second."""
CHEAP = ("gptq-dfrot", "tuned-dfrot")
"""Rows that are expected to cost at most W4A4KV4_COST."""
RTN_COST = 1.25  # perplexity ratio to bf16 that rounding without rotation is expected to cost at least
W4A4KV4_COST = 1.03  # perplexity ratio to bf16 that the best methods are expected to cost at most
KERNEL_BITS = 4  # weight bits that run on integer kernels; others are simulated
Measurement = Mapping[str, Any]
"""What was measured on one cell."""
Runs = Sequence[Measurement]
"""The cells of one row: one per seed."""


def summarise(
    measured: Mapping[str, Measurement],
    cells: Sequence[ComparisonCell],
    schemes: Mapping[str, QuantScheme],
    refinements: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as JSON: `dataset`, `protocol`, `tables` by scheme, `objective` of the refinements, `cells`.

    measured: measurements by cell name, of the baseline and of `cells`; refinements: records by group name."""
    base = measured[BASELINE]
    return {
        "dataset": base["dataset"],
        "protocol": base["protocol"],
        "also": [{"dataset": other["dataset"], "protocol": other["protocol"]} for other in _also(base).values()],
        "tables": {name: _table(measured, cells, name, scheme) for name, scheme in schemes.items()},
        "objective": [_objective(name, record) for name, record in refinements.items()],
        "cells": dict(measured),
        "other_code": [name for name, cell in measured.items() if not cell.get("same_code", True)],
    }


def _also(cell: Measurement) -> Mapping[str, Measurement]:
    """What was measured on further texts, by name."""
    return cell.get("also", {})  # type: ignore[no-any-return]


def _table(
    measured: Mapping[str, Measurement], cells: Sequence[ComparisonCell], name: str, scheme: QuantScheme
) -> dict[str, Any]:
    """Rows, differences and claims of one scheme."""
    base = [measured[BASELINE]]
    runs: dict[str, list[Measurement]] = {}
    for cell in cells:
        if cell.scheme == name:
            runs.setdefault(cell.row_name, []).append(measured[cell.name])
    rows = [_row("bf16", base, base, None)]
    rows += [_row(ROWS[row_name].label, results, base, runs.get(RTN)) for row_name, results in runs.items()]
    pairs = [(row_name, other) for row_name in runs for other in ROWS[row_name].against if other in runs]
    return {
        "rows": rows,
        "differences": [_difference(runs, row_name, other) for row_name, other in pairs],
        "claims": _claims(runs, base, scheme),
        "simulated": scheme.w_bits != KERNEL_BITS,
    }


def _nll(runs: Runs) -> Tensor:
    """Loss per window, averaged over seeds, float64 [windows]."""
    return torch.tensor([run["window_nll"] for run in runs], dtype=torch.float64).mean(0)


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
        "ratio_ci": None if runs is base else as_list(interval),
        "bytes_on_disk": runs[0]["bytes_on_disk"],
        "tokens_per_second": max(float(run["tokens_per_second"]) for run in runs),
        "decode_tokens_per_second": max(speeds) if speeds else None,
        "fallbacks": sorted({name for run in runs for name in run.get("fallbacks", {})}),
        **_agreement(runs),
        **_cost(runs),
    }
    if also := _also(runs[0]):
        row["also"] = {name: _on_text(name, runs, base) for name in also}
    if rtn is not None and runs is not rtn:
        gain, gain_interval = ratio_interval(_nll(runs), _nll(rtn))
        row["ratio_to_rtn"], row["ratio_to_rtn_ci"] = gain, as_list(gain_interval)
    return row


def _agreement(runs: Runs) -> dict[str, Any]:
    """Divergence from the baseline and agreement with it: means over seeds, with the interval over windows."""
    if any(run.get("window_kl") is None for run in runs):
        return {"kl": runs[0].get("kl"), "kl_ci": None, "top1": runs[0].get("top1")}
    kl = torch.tensor([run["window_kl"] for run in runs], dtype=torch.float64).mean(0)
    mean, interval = mean_interval(kl)
    return {"kl": mean, "kl_ci": as_list(interval), "top1": statistics.fmean(float(run["top1"]) for run in runs)}


def _on_text(name: str, runs: Runs, base: Runs) -> dict[str, Any]:
    """One row on the further text `name`."""
    results, reference = [_also(run)[name] for run in runs], [_also(run)[name] for run in base]
    values = [float(result["perplexity"]) for result in results]
    ratio, interval = ratio_interval(_nll(results), _nll(reference))
    return {
        "perplexity": statistics.fmean(values),
        "perplexity_by_seed": values,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "ratio_to_bf16": ratio,
        "ratio_ci": None if runs is base else as_list(interval),
        **_agreement(results),
    }


def _cost(runs: Runs) -> dict[str, Any]:
    """What a row takes: seconds to make and to measure one checkpoint (mean over seeds; rotations that rows share
    count for each), and the highest resident memory. None where a stage was interrupted or cannot be measured."""

    def total(run: Measurement, making: bool) -> float | None:
        times = [value for kind, value in run.get("seconds", {}).items() if (kind != "evaluate") == making]
        return None if None in times else math.fsum(times)

    def mean(values: Sequence[float | None]) -> float | None:
        whole = [value for value in values if value is not None]
        return statistics.fmean(whole) if whole else None

    peaks = [peak for run in runs for peak in run.get("peak_memory", {}).values() if peak is not None]
    return {
        "make_seconds": mean([total(run, True) for run in runs]),
        "evaluate_seconds": mean([total(run, False) for run in runs]),
        "peak_memory": max(peaks) if peaks else None,
    }


def _difference(runs: Mapping[str, Runs], row_name: str, other: str) -> dict[str, Any]:
    """A row against another one: perplexity ratio, its interval over windows, and the ratio seed by seed (of a row
    without seeds, its only value)."""
    ratio, interval = ratio_interval(_nll(runs[row_name]), _nll(runs[other]))
    by_seed = [float(a["perplexity"]) / float(b["perplexity"]) for a, b in _seed_pairs(runs[row_name], runs[other])]
    return {
        "method": ROWS[row_name].label,
        "against": ROWS[other].label,
        "ratio": ratio,
        "ratio_ci": as_list(interval),
        "ratio_by_seed": by_seed,
        "seeds_agree": all(value < 1 for value in by_seed) or all(value > 1 for value in by_seed),
    }


def _seed_pairs(runs: Runs, others: Runs) -> Iterator[tuple[Measurement, Measurement]]:
    """Both rows' results of each seed; a row that does not depend on seeds is repeated."""
    count = max(len(runs), len(others))
    return zip(list(runs) * (count if len(runs) == 1 else 1), list(others) * (count if len(others) == 1 else 1))


def _claims(runs: Mapping[str, Runs], base: Runs, scheme: QuantScheme) -> list[dict[str, Any]]:
    """What the rows are expected to show, with the number that decides it; a failed claim is stated, not hidden.

    "Clearly" means: the whole paired interval over windows lies on that side, and so does every seed."""
    claims: list[dict[str, Any]] = []
    if RTN in runs:
        ratio, _ = ratio_interval(_nll(runs[RTN]), _nll(base))
        claim = f"no rotation costs at least {RTN_COST} x bf16"
        claims.append({"claim": claim, "value": ratio, "holds": ratio >= RTN_COST})
        for name in (name for name in ROUNDED if name in runs):
            claims.append(_below(f"{ROWS[name].label} clearly below RTN", runs[name], runs[RTN]))
    for name, other in BELOW:
        if name in runs and other in runs:
            claims.append(_below(f"{ROWS[name].label} below {ROWS[other].label}", runs[name], runs[other]))
    for name in CHEAP:
        if name in runs and (scheme.w_bits, scheme.a_bits, scheme.kv_bits) == (4, 4, 4):
            ratio, _ = ratio_interval(_nll(runs[name]), _nll(base))
            claim = f"{ROWS[name].label} at most {W4A4KV4_COST} x bf16"
            claims.append({"claim": claim, "value": ratio, "holds": ratio <= W4A4KV4_COST})
    return claims


def _below(claim: str, runs: Runs, others: Runs) -> dict[str, Any]:
    """The claim that `runs` have a lower perplexity than `others`."""
    ratio, interval = ratio_interval(_nll(runs), _nll(others))
    every_seed = all(float(a["perplexity"]) < float(b["perplexity"]) for a, b in _seed_pairs(runs, others))
    holds = every_seed and ratio < 1 and (interval is None or interval[1] < 1)
    return {"claim": claim, "value": ratio, "ci": as_list(interval), "holds": holds}


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
