"""dfq bench kernels: operators beside torch's, in percent of what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.bench.settings import KernelBenchSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("kernels")
@options_of(KernelBenchSettings)
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PNG",
    help="Draw a roofline plot to this file.",
)
@common
def command(figure: Path | None, common: Common, **options: Any) -> None:
    """Time every operator beside its peers. An operator that differs from its reference gets no speed."""
    common.prepare()
    from dfrot.bench.kernels.run import bench_kernels, selected_ops
    from dfrot.errors import ExistsError, GateError

    settings = vars(settings_from(KernelBenchSettings, options, seed=common.seed))
    settings = {**settings, "ops": selected_ops(settings["ops"])}
    if figure is not None and figure.exists() and not common.overwrite:
        raise ExistsError(
            f"{figure}: already exists; choose another `figure`, or replace it with `overwrite`",
            field=("figure", "overwrite"),
            file=figure,
        )
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
    if wrong := [row for row in result["results"] if not row["passed"]]:
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
    for op in dict.fromkeys(row["op"] for row in result["results"]):
        own = [row for row in result["results"] if row["op"] == op]
        peers = list(dict.fromkeys(name for row in own for name in row.get("peers", {})))
        heads = ("shape", "rows", "us", "+-%", "best", "GB/s", "G/s", "% roof", *(f"x {name}" for name in peers))
        show.table(f"{op} ({own[0]['implementation']})", heads, [_row(row, peers) for row in own])


def _row(row: dict[str, Any], peers: list[str]) -> tuple[Any, ...]:
    sizes = "x".join(str(value) for name, value in row["shape"].items() if name != "rows" and value)
    if not row["passed"]:
        return (sizes, row["shape"]["rows"], f"wrong by {row['error']:.2g}", *[None] * (5 + len(peers)))
    ratios = [row["peers"].get(name, {}).get("ratio") for name in peers]
    seconds, rates = row["seconds"], (row["bytes_per_s"] / 1e9, row["operations_per_s"] / 1e9 or None)
    times = (seconds["median"] * 1e6, 100 * seconds["spread"], seconds["best"] * 1e6)
    return (sizes, row["shape"]["rows"], *times, *rates, row["roofline_percent"], *ratios)
