"""The tables of `dfq bench models`."""

from __future__ import annotations

from typing import Any

from dfrot_cli import show


def race_tables(report: dict[str, Any]) -> None:
    """A table per 16-bit checkpoint, what did not run and why, versions, kernels and machine."""
    machine = report["machine"]
    for source in report["sources"]:
        _speeds(source, machine)
        _sizes(source)
        for name, reason in source["absent"].items():
            show.line(f"not run: {name}: {reason}")
        for text in source["notes"]:
            show.line(f"note: {text}")
    if engines := {row["version"]: row["kernels"] for source in report["sources"] for row in source["results"]}:
        show.facts("engines", engines)
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = ", ".join(str(value) for value in machine["load"])
    show.line(
        f"{machine['processor']}, processors {','.join(map(str, machine['processors']))}, load {load}; {packages}"
    )
    show.line("* the best of those whose perplexity and text are sound; +-%: half the interquartile range of the turns")


def _speeds(source: dict[str, Any], machine: dict[str, Any]) -> None:
    rows = source["results"]
    prompts = sorted({int(n) for row in rows for n in row["first"]})
    cached = sorted({int(n) for row in rows for n in row["decode"]})
    heads = [f"first token behind {n}, ms" for n in prompts] + [f"tokens/s at {n}" for n in cached]
    columns = ("", "perplexity", "x 16 bits", *(name for head in heads for name in (head, "+-%")), "out because")
    lines = []
    for row in rows:
        cells: list[Any] = [row["name"], row["perplexity"], row["ratio"]]
        for n in map(str, prompts):
            cells += _cells(row, "first", n, 1e3)
        for n in map(str, cached):
            cells += _cells(row, "decode", n, None)
        lines.append((*cells, row["fault"]))
    show.table(f"{source['model']}, batch 1, {machine['threads']} threads", columns, lines)


def _cells(row: dict[str, Any], part: str, n: str, scale: float | None) -> list[Any]:
    """Value, marked where nobody is better, and spread; a rate where `scale` is None."""
    timing = row[part].get(n)
    if timing is None:
        return [None, None]
    value = timing["median"] * scale if scale else 1 / timing["median"]
    return [f"{value:,.0f}{'*' if f'{part} {n}' in row['wins'] else ''}", round(100 * timing["spread"])]


def _sizes(source: dict[str, Any]) -> None:
    parts = ("weights", "activations", "kv", "head", "embedding")
    columns = ("", *(f"{part} bits" for part in parts), "load, s", "peak memory", "PSS", "of it mapped", "on disk")
    lines = []
    for row in source["results"]:
        memory = row["memory"]
        sizes = [show.size(memory[key]) if key in memory else None for key in ("peak", "pss", "pss_file")]
        bits = [row["bits"].get(part) for part in parts]
        lines.append((row["name"], *bits, row["load"], *sizes, show.size(row["bytes_on_disk"])))
    show.table(f"{source['model']}: sizes", columns, lines)
