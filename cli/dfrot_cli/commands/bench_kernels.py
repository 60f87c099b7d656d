"""dfq bench kernels: operators beside torch's, in percent of what this machine can do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan


def _shapes(ctx: click.Context, option: click.Parameter, value: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in value.split(",")]
    if not all(found):
        raise click.BadParameter("write N x K of a weight, like 4096x4096,14336x4096")
    return [(int(match[1]), int(match[2])) for match in found if match]


def _rows(ctx: click.Context, option: click.Parameter, value: str) -> list[int]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter("write numbers of rows, like 1,4,8,512")
    return [int(part) for part in parts]


@click.command("kernels")
@click.option("--ops", metavar="A,B", help="Operators to measure. Default: all that the bench knows.")
@click.option("--shapes", default="4096x4096,14336x4096,4096x14336", callback=_shapes, show_default=True,
              metavar="NxK,..", help="Weights: output times input width.")  # fmt: skip
@click.option("--rows", default="1,4,8,512", callback=_rows, show_default=True, metavar="M,..", help="Activation rows.")
@click.option(
    "--group", type=click.IntRange(0), default=0, show_default=True, help="Columns per scale; 0: per channel."
)
@click.option("--context", type=click.IntRange(1), default=8192, show_default=True, help="Of attention, in tokens.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Interleaved samples.")
@click.option("--peers/--no-peers", "with_peers", default=True, show_default=True, help="Time torch's kernels too.")
@click.option("--cached", is_flag=True, help="Operands that caches may hold, instead of ones that come from memory.")
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Write a roofline plot.")
@common
def command(ops: str | None, figure: Path | None, common: Common, **options: Any) -> None:
    """Time every operator against its peers; one that fails its reference prints no speed."""
    common.prepare()
    from dfrot.bench.kernels.run import bench_kernels, selected_ops
    from dfrot.errors import ExistsError, GateError

    names = [part.strip() for part in (ops or "").split(",") if part.strip()]
    settings = {"ops": selected_ops(names), **options, "seed": common.seed}
    if figure is not None and figure.exists() and not common.overwrite:
        raise ExistsError(f"{figure}: already exists; choose another --figure, or replace it with --overwrite")
    if common.plan:
        plan("bench kernels", {}, settings, figure, common)
        return
    with show.progress() as progress:
        result = bench_kernels(**settings, progress=progress)
    if figure is not None:
        from dfrot.bench.kernels.figure import plot_roofline

        plot_roofline(result, figure)
    if common.json:
        show.as_json(result)
    else:
        _tables(result)
        if figure is not None:
            show.line(f"wrote {figure}")
    if wrong := [one for one in result["results"] if not one["passed"]]:
        first = wrong[0]
        raise GateError(f"{first['op']} {first['shape']}: {first['error']:.3g} off its reference, {first['limit']:.3g} "
                        f"is allowed; {len(wrong)} measurements failed and have no speed")  # fmt: skip


def _tables(result: dict[str, Any]) -> None:
    line, machine = result["roofline"], result["machine"]
    show.facts(f"{machine['processor']}, {machine['threads']} threads", {
        "read": f"{line['read_bytes_per_s'] / 1e9:.1f} GB/s",
        "bf16": f"{line['bf16_per_s'] / 1e9:,.0f} G/s",
        "int8": f"{line['int8_per_s'] / 1e9:,.0f} G/s",
    })  # fmt: skip
    for op in dict.fromkeys(one["op"] for one in result["results"]):
        own = [one for one in result["results"] if one["op"] == op]
        peers = list(dict.fromkeys(name for one in own for name in one.get("peers", {})))
        heads = ("shape", "rows", "us", "+-%", "best", "GB/s", "G/s", "% roof", *(f"x {name}" for name in peers))
        show.table(f"{op} ({own[0]['implementation']})", heads, [_row(one, peers) for one in own])


def _row(one: dict[str, Any], peers: list[str]) -> tuple[Any, ...]:
    sizes = "x".join(str(value) for name, value in one["shape"].items() if name != "rows" and value)
    if not one["passed"]:
        return (sizes, one["shape"]["rows"], f"wrong by {one['error']:.2g}", *[None] * (5 + len(peers)))
    ratios = [one["peers"].get(name, {}).get("ratio") for name in peers]
    seconds, rates = one["seconds"], (one["bytes_per_s"] / 1e9, one["operations_per_s"] / 1e9 or None)
    times = (seconds["median"] * 1e6, 100 * seconds["spread"], seconds["best"] * 1e6)
    return (sizes, one["shape"]["rows"], *times, *rates, one["roofline_percent"], *ratios)
