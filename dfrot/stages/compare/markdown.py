"""The report of `dfq compare` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(report: Mapping[str, Any]) -> str:
    """The report of `summarise` as text."""
    lines = [f"Dataset {report['dataset']['name']}, protocol {report['protocol']['id']}."]
    if report.get("calibration", {}).get("evaluated"):
        lines += ["Its only text is also that of calibration and refinement."]
    lines += [""]
    for name, table in report["tables"].items():
        lines += [f"## {name}" + (" (simulated)" if table["simulated"] else ""), ""]
        lines += [*_rows(table), ""]
        for text in report["also"]:
            where = f"{text['dataset']['name']}, which nothing was calibrated on, protocol {text['protocol']['id']}"
            lines += [f"Further text {where}:", ""]
            lines += [*_rows_on(table, text["dataset"]["name"]), ""]
        lines += [*_differences(table), ""] if table["differences"] else []
        lines += [*_claims(table), ""] if table["claims"] else []
    if report["objective"]:
        lines += ["## Refinement against its Hadamard start", "", *_refinements(report), ""]
    return "\n".join(lines)


def _rows(table: Mapping[str, Any]) -> list[str]:
    lines = ["| method | perplexity | spread | x bf16 | 95 % (windows) | KL | top-1 | MB | tokens/s | decode/s |"]
    lines[0] += " make s | peak MB |"
    lines += ["| --- |" + " ---: |" * 11]
    for row in table["rows"]:
        cells = (
            row["method"],
            _number(row["perplexity"]),
            _number(row["spread"]),
            _number(row["ratio_to_bf16"], 4),
            _number(row["ratio_ci"], 4),
            _number(row["kl"], 4),
            _number(row["top1"], 4),
            _number(row["bytes_on_disk"] / 1e6, 2),
            _number(row["tokens_per_second"], 0),
            _number(row["decode_tokens_per_second"], 0),
            _number(row["make_seconds"], 1),
            _number(row["peak_memory"] and row["peak_memory"] / 1e6, 0),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _rows_on(table: Mapping[str, Any], text: str) -> list[str]:
    """The rows as measured on a further text."""
    lines = ["| method | perplexity | spread | x bf16 | 95 % (windows) | KL | top-1 |", "| --- |" + " ---: |" * 6]
    for row in table["rows"]:
        result = row["also"][text]
        numbers = [_number(result[key]) for key in ("perplexity", "spread")]
        numbers += [_number(result[key], 4) for key in ("ratio_to_bf16", "ratio_ci", "kl", "top1")]
        lines.append(f"| {row['method']} | " + " | ".join(numbers) + " |")
    return lines


def _differences(table: Mapping[str, Any]) -> list[str]:
    lines = ["| difference | ratio | 95 % (windows) | by seed |", "| --- | ---: | ---: | ---: |"]
    for difference in table["differences"]:
        by_seed = ", ".join(_number(value, 4) for value in difference["ratio_by_seed"])
        pair = f"{difference['method']} / {difference['against']}"
        ratio, interval = _number(difference["ratio"], 4), _number(difference["ratio_ci"], 4)
        lines.append(f"| {pair} | {ratio} | {interval} | {by_seed} |")
    return lines


def _claims(table: Mapping[str, Any]) -> list[str]:
    lines = ["| claim | value | holds |", "| --- | ---: | --- |"]
    for claim in table["claims"]:
        lines.append(f"| {claim['claim']} | {_number(claim['value'], 4)} | {'yes' if claim['holds'] else 'NO'} |")
    return lines


def _refinements(report: Mapping[str, Any]) -> list[str]:
    lines = ["| rotation | massive tokens | massive error | common error | objective | never rises |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
    for entry in report["objective"]:
        ratios = (entry[f"{kind}_ratio"] for kind in ("massive_error", "common_error", "objective"))
        shown = " | ".join(f"x {_number(value, 3)}" for value in ratios)
        never_rises = "yes" if entry["never_rises"] else "NO"
        lines.append(f"| {entry['rotation']} | {entry['massive_tokens']} | {shown} | {never_rises} |")
    return lines


def _number(value: Any, digits: int = 3) -> str:
    """A number, an interval, or nothing, as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " .. ".join(_number(end, digits) for end in value)
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
