"""The report of dfq compare as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot_cli import show

KEYS = ("perplexity", "spread", "ratio_to_bf16", "ratio_ci", "kl", "top1")
SPEEDS = ("tokens_per_second", "decode_tokens_per_second", "make_seconds")
TEXT_HEADS = ("method", "perplexity", "spread", "x bf16", "95 % windows", "KL", "top-1")
HEADS = ("method", "seeds", *TEXT_HEADS[1:], "tokens/s", "decode/s", "make s", "memory", "on disk")


def show_comparison(report: dict[str, Any], out: Path) -> None:
    """Print the report of `compare` that was written to folder `out`."""
    for scheme, table in report["tables"].items():
        rows = [
            (row["method"], row["seeds"], *(row[key] for key in (*KEYS, *SPEEDS)), *_sizes(row))
            for row in table["rows"]
        ]
        show.table(f"{scheme}{' (simulated)' if table['simulated'] else ''}", HEADS, rows)
        for text in (entry["dataset"]["name"] for entry in report["also"]):
            rows = [(row["method"], *(row["also"][text][key] for key in KEYS)) for row in table["rows"]]
            show.table(f"{scheme} on {text}, not calibrated on", TEXT_HEADS, rows)
        _comparisons(table)
    if report["objective"]:
        keys = ("massive_tokens", "massive_error_ratio", "common_error_ratio", "objective_ratio", "never_rises")
        heads = (
            "refinement / its start",
            "massive tokens",
            "massive error",
            "common error",
            "objective",
            "never rises",
        )
        show.table("", heads, [(row["rotation"], *(row[key] for key in keys)) for row in report["objective"]])
    if report["other_code"]:
        show.note(
            f"{len(report['other_code'])} cells were measured by another state of dfq's code; --no-resume measures all "
            "again"
        )
    show.line(f"wrote {out / 'compare.json'} and {out / 'compare.md'}")


def _sizes(row: dict[str, Any]) -> tuple[str | None, str]:
    """Peak memory and bytes on disk, as the table shows them."""
    return None if row["peak_memory"] is None else show.size(row["peak_memory"]), show.size(row["bytes_on_disk"])


def _comparisons(table: dict[str, Any]) -> None:
    """Differences between rows, and the papers' claims."""
    pairs = [
        (
            f"{row['method']} / {row['against']}",
            row["ratio"],
            row["ratio_ci"],
            ", ".join(map(show.cell, row["ratio_by_seed"])),
        )
        for row in table["differences"]
    ]
    claims = [(row["claim"], row["value"], row["holds"]) for row in table["claims"]]
    if pairs:
        show.table("", ("difference", "ratio", "95 % windows", "by seed"), pairs)
    if claims:
        show.table("", ("claim", "value", "holds"), claims)
