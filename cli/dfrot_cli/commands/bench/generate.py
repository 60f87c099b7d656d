"""dfq bench generate: a whole model beside llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan


def _schemes(ctx: click.Context, option: click.Parameter, value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


@click.command("generate")
@click.option("--shape", default="1.1b", show_default=True, help="tiny, 160m, 1.1b, 3b or 8b, with random weights.")
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="A checkpoint instead of a shape.")
@click.option("--schemes", default="w4a16kv16,w4a8kv4,w4a4kv4", callback=_schemes, show_default=True, metavar="A,B")
@click.option("--prefill", type=click.IntRange(1), default=512, show_default=True, help="Tokens of the long prompt.")
@click.option("--decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens generated per sample.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Interleaved samples.")
@click.option("--peer/--no-peer", default=None, help="Demand llama.cpp / leave it out. Default: where installed.")
@click.option("--memory/--no-memory", "with_memory", default=True, show_default=True, help="Measure peak memory too.")
@common
def command(common: Common, **options: Any) -> None:
    """Tokens per second of prefill and decoding at batch 1, and peak memory, beside llama.cpp Q4_0."""
    common.prepare()
    from dfrot.bench.models.generate import bench_generate
    from dfrot.bench.models.presets import preset

    model = options["model"]
    if model is None:
        preset(options["shape"])
    settings = {**options, "seed": common.seed}
    if common.plan:
        plan("bench generate", {"model": model} if model else {}, settings, None, common)
        return
    with show.progress() as progress:
        result = bench_generate(**settings, progress=progress)
    if common.json:
        show.as_json(result)
        return
    _table(result)


def _table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    title = (
        f"{result['model'] or result['shape']}, batch 1, {machine['threads']} threads, {machine['processor']}: "
        f"prefill of {result['prefill']}, {result['decode']} tokens decoded behind {result['prompt']}"
    )
    heads = ("", "prefill/s", "+-%", "decode/s", "+-%", "x prefill", "x decode", "memory", "peak", "x memory", "x peak")
    rows = []
    for name, one in result["results"].items():
        used, ratio = one["memory"] or {}, one.get("ratio", {})
        rows.append((
            name, one["prefill_per_s"], 100 * one["prefill"]["spread"],
            one["decode_per_s"], 100 * one["decode"]["spread"], ratio.get("prefill"), ratio.get("decode"),
            show.size(used["model"]) if used else None, show.size(used["peak"]) if used else None,
            ratio.get("model_memory"), ratio.get("peak_memory"),
        ))  # fmt: skip
    show.table(title, heads, rows)
    show.line("memory: above what the imported libraries take; peak: the whole process; x: ours over llama.cpp's rate")
