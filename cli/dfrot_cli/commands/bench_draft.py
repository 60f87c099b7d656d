"""dfq bench draft: what drafting costs on this machine, and from which acceptance length it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan


def _numbers(ctx: click.Context, option: click.Parameter, value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("numbers with commas between them") from None


def _names(ctx: click.Context, option: click.Parameter, value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


@click.command("draft")
@click.option("--shape", default="1.1b", show_default=True, help="tiny, 160m, 1.1b, 3b or 8b, with random weights.")
@click.option("--scheme", default="w4a4kv4", show_default=True)
@click.option("--rows", default="1,2,4,8,16,32,64", callback=_numbers, show_default=True, metavar="N,N")
@click.option("--drafts", default="bfloat16,w4", callback=_names, show_default=True, metavar="A,B")
@click.option("--tree", "trees", multiple=True, metavar="D,K,N", help="Depth, top-k, nodes with the root; repeatable.")
@click.option("--prompt", type=click.IntRange(2), default=128, show_default=True, help="Positions in the cache.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Interleaved samples.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Also write JSON and a plot here.")
@common
def command(common: Common, out: Path | None, **options: Any) -> None:
    """Cost of a verify pass of n rows and of n guesses, and the speedup by acceptance length that follows."""
    common.prepare()
    from dfrot.bench.models.draft import bench_draft
    from dfrot.bench.models.draft_figure import plot_draft
    from dfrot.bench.models.presets import preset
    from dfrot.errors import ExistsError
    from dfrot.files import write_json
    from dfrot.generation.tree import TreeShape

    preset(options["shape"])
    options["trees"] = tuple(TreeShape.parse(None, tree) for tree in options["trees"])
    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    settings = {**options, "seed": common.seed}
    if common.plan:
        named = [tree.name for tree in settings["trees"]]
        plan("bench draft", {}, {**settings, "trees": named}, out, common)
        return
    with show.progress() as progress:
        result = bench_draft(**settings, progress=progress)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "draft.json", result)
        plot_draft(result, out / "draft.png")
    show.as_json(result) if common.json else _tables(result)
    if out is not None and not common.json:
        show.line(f"wrote {out}")


def _tables(result: dict[str, Any]) -> None:
    machine, step = result["machine"], result["step"]
    heads = ["n", "verify ms", "x step"]
    for kind in result["draft"]:
        heads += [f"{kind} draft ms", "pays from tau"]
    rows = []
    for n, seconds in result["verify"].items():
        row: list[Any] = [n, 1e3 * seconds, seconds / step]
        for kind, costs in result["draft"].items():
            even = result["break_even"][kind][n]
            row += [1e3 * costs[n], even if even < n + 1 else "never"]
        rows.append(row)
    title = (
        f"{result['shape']} {result['scheme']}, {machine['threads']} threads, {machine['processor']}: n rows, n guesses"
    )
    show.table(f"{title}; a step takes {1e3 * step:.1f} ms", heads, rows)
    trees = []
    for name, found in result["trees"].items():
        row = [name, 1e3 * found["verify"], found["verify"] / step]
        for kind in result["draft"]:
            row += [1e3 * found["draft"][kind], found["break_even"][kind]]
        trees.append(row)
    if trees:
        show.table("trees", ["tree", *heads[1:]], trees)
    for kind, found in result["speedup"].items():
        best_of = [(chance, best["guesses"], best["tau"], best["speedup"]) for chance, best in found.items()]
        show.table(f"{kind} draft", ("a guess stands", "best guesses", "tau", "speedup"), best_of)
