"""From measured cells to the table: means over seeds, paired intervals, differences between rotations, claims.

Two spreads matter and are kept apart: over evaluation windows (would other text say the same?), as paired Student t
intervals on the seed-averaged loss per window, and over seeds (would another draw of the rotation say the same?), as
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

from dfrot.evaluate.intervals import ratio_interval
from dfrot.quant.scheme import QuantScheme

BASELINE = "bf16"
LABELS = {
    ("rtn", "none"): "RTN",
    ("rtn", "orthogonal"): "RTN + orthogonal",
    ("rtn", "hadamard"): "RTN + Hadamard",
    ("rtn", "dfrot"): "RTN + DFRot",
    ("gptq", "hadamard"): "GPTQ + Hadamard",
    ("gptq", "dfrot"): "GPTQ + DFRot",
    ("tuned", "dfrot"): "GPTQ + DFRot, tuned",
}
PAIRS = (
    (("rtn", "hadamard"), ("rtn", "orthogonal")),
    (("rtn", "dfrot"), ("rtn", "orthogonal")),
    (("rtn", "dfrot"), ("rtn", "hadamard")),
    (("gptq", "dfrot"), ("gptq", "hadamard")),
    (("tuned", "dfrot"), ("gptq", "dfrot")),
)
Key = tuple[str, str]
Cells = Mapping[str, Mapping[str, Any]]


def summarise(cells: Cells, schemes: Mapping[str, QuantScheme], rotations: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report as JSON: `tables` by scheme, `cells`, `rotations`. cells: measurements by cell name."""
    base = cells[BASELINE]
    return {
        "dataset": base["dataset"],
        "protocol": base["protocol"],
        "tables": {name: _scheme(cells, name, scheme) for name, scheme in schemes.items()},
        "objective": [_objective(name, value) for name, value in rotations.items()],
        "cells": dict(cells),
    }


def _runs(cells: Cells, scheme: str, key: Key) -> list[Mapping[str, Any]]:
    """The cells of one row, one per seed, in the order they were made."""
    stem = f"{scheme}-{key[0]}-{key[1]}"
    return [cell for name, cell in cells.items() if name == stem or name.startswith(stem + "-")]


def _nll(runs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Loss per window, averaged over seeds, float64 [windows]."""
    return torch.tensor([run["window_nll"] for run in runs], dtype=torch.float64).mean(0)


def _scheme(cells: Cells, name: str, scheme: QuantScheme) -> dict[str, Any]:
    base = [cells[BASELINE]]
    runs = {key: found for key in LABELS if (found := _runs(cells, name, key))}
    rows = [_row("bf16", base, base, None)]
    rows += [_row(LABELS[key], found, base, runs.get(("rtn", "none"))) for key, found in runs.items()]
    differences = [_difference(runs, one, other) for one, other in PAIRS if one in runs and other in runs]
    return {
        "rows": rows,
        "differences": differences,
        "claims": _claims(runs, base, scheme),
        "simulated": scheme.w_bits != 4,
    }


def _row(
    label: str,
    runs: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    plain: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
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
        "ratio_ci": None if interval is None or runs is base else list(interval),
        "bytes_on_disk": runs[0]["bytes_on_disk"],
        "tokens_per_second": max(float(run["tokens_per_second"]) for run in runs),
        "decode_tokens_per_second": max(speeds) if speeds else None,
        "fallbacks": sorted({name for run in runs for name in run.get("fallbacks", {})}),
    }
    if plain is not None and runs is not plain:
        gain, gain_ci = ratio_interval(_nll(runs), _nll(plain))
        row["ratio_to_rtn"], row["ratio_to_rtn_ci"] = gain, None if gain_ci is None else list(gain_ci)
    return row


def _difference(runs: Mapping[Key, Sequence[Mapping[str, Any]]], one: Key, other: Key) -> dict[str, Any]:
    """How much lower `one` is than `other`: perplexity ratio, its interval over windows, and seed by seed."""
    ratio, interval = ratio_interval(_nll(runs[one]), _nll(runs[other]))
    by_seed = [float(a["perplexity"]) / float(b["perplexity"]) for a, b in zip(runs[one], runs[other])]
    return {
        "method": LABELS[one],
        "against": LABELS[other],
        "ratio": ratio,
        "ratio_ci": None if interval is None else list(interval),
        "ratio_by_seed": by_seed,
        "seeds_agree": all(value < 1 for value in by_seed) or all(value > 1 for value in by_seed),
    }


def _claims(
    runs: Mapping[Key, Sequence[Mapping[str, Any]]], base: Sequence[Mapping[str, Any]], scheme: QuantScheme
) -> list[dict[str, Any]]:
    """What the table is expected to show, with the number that decides it; a failed claim is stated, not hidden.
    "Clearly" means: the whole paired interval over windows lies on that side, and so does every seed."""
    plain = runs[("rtn", "none")]
    ratio, _ = ratio_interval(_nll(plain), _nll(base))
    found = [{"claim": "no rotation costs at least 1.25 x bf16", "value": ratio, "holds": ratio >= 1.25}]
    for key in (key for key in runs if key[0] == "rtn" and key[1] != "none"):
        found.append(_below(f"{LABELS[key]} clearly below RTN", runs[key], plain))
    for rotation in ("hadamard", "dfrot"):
        one, other = ("gptq", rotation), ("rtn", rotation)
        if one in runs and other in runs:
            found.append(_below(f"{LABELS[one]} below {LABELS[other]}", runs[one], runs[other]))
    for key in (("gptq", "dfrot"), ("tuned", "dfrot")):
        if key in runs and (scheme.w_bits, scheme.a_bits, scheme.kv_bits) == (4, 4, 4):
            ratio, _ = ratio_interval(_nll(runs[key]), _nll(base))
            found.append({"claim": f"{LABELS[key]} at most 1.03 x bf16", "value": ratio, "holds": ratio <= 1.03})
    return found


def _below(claim: str, runs: Sequence[Mapping[str, Any]], than: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratio, interval = ratio_interval(_nll(runs), _nll(than))
    others = list(than) * len(runs) if len(than) == 1 else than
    each = all(float(a["perplexity"]) < float(b["perplexity"]) for a, b in zip(runs, others))
    holds = each and ratio < 1 and (interval is None or interval[1] < 1)
    return {"claim": claim, "value": ratio, "ci": None if interval is None else list(interval), "holds": holds}


def _objective(name: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    """A refinement against its Hadamard start: error per token of massive and of common tokens."""

    def ratio(kind: str) -> float | None:
        start = float(stats[f"{kind}_error_start"])
        return float(stats[f"{kind}_error"]) / start if start > 0 and math.isfinite(start) else None

    accepted = stats.get("accepted", [])
    return {
        "rotation": name,
        "seed": stats["seed"],
        "a_bits": stats["a_bits"],
        "gamma": stats["gamma"],
        "massive_tokens": stats["n_massive"],
        "massive_error_ratio": ratio("massive"),
        "common_error_ratio": ratio("common"),
        "objective_ratio": stats["objective"] / stats["objective_start"] if stats["objective_start"] else None,
        "never_rises": all(later <= earlier for earlier, later in itertools.pairwise(accepted)),
    }


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " .. ".join(_number(one, digits) for one in value)
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = [f"Dataset {report['dataset']['name']}, protocol {report['protocol']['id']}.", ""]
    for name, table in report["tables"].items():
        lines += [f"## {name}" + (" (simulated)" if table["simulated"] else ""), ""]
        lines += ["| method | perplexity | spread | x bf16 | 95 % (windows) | MB | tokens/s | decode/s |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for row in table["rows"]:
            cells = (
                row["method"],
                _number(row["perplexity"]),
                _number(row["spread"]),
                _number(row["ratio_to_bf16"], 4),
                _number(row["ratio_ci"], 4),
                _number(row["bytes_on_disk"] / 1e6, 2),
                _number(row["tokens_per_second"], 0),
                _number(row["decode_tokens_per_second"], 0),
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "| difference | ratio | 95 % (windows) | by seed |", "| --- | ---: | ---: | ---: |"]
        for one in table["differences"]:
            by_seed = ", ".join(_number(value, 4) for value in one["ratio_by_seed"])
            pair = f"{one['method']} / {one['against']}"
            lines.append(f"| {pair} | {_number(one['ratio'], 4)} | {_number(one['ratio_ci'], 4)} | {by_seed} |")
        lines += ["", "| claim | value | holds |", "| --- | ---: | --- |"]
        for claim in table["claims"]:
            lines.append(f"| {claim['claim']} | {_number(claim['value'], 4)} | {'yes' if claim['holds'] else 'NO'} |")
        lines.append("")
    if report["objective"]:
        lines += ["## Refinement against its Hadamard start", ""]
        lines += ["| rotation | massive tokens | massive error | common error | objective | never rises |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
        for one in report["objective"]:
            ratios = (one[f"{kind}_ratio"] for kind in ("massive_error", "common_error", "objective"))
            shown = " | ".join(f"x {_number(value, 3)}" for value in ratios)
            rises = "yes" if one["never_rises"] else "NO"
            lines.append(f"| {one['rotation']} | {one['massive_tokens']} | {shown} | {rises} |")
        lines.append("")
    return "\n".join(lines)
