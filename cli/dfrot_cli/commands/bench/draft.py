"""dfq bench draft: what drafting costs on this machine, and from which acceptance length it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.bench.settings import DraftBenchSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common, file_option, require_new
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("draft")
@options_of(DraftBenchSettings)
@click.option(
    "--tree",
    "trees",
    multiple=True,
    metavar="D,K,N",
    help="Also time this tree: depth, top-k, total nodes; repeatable.",
)
@file_option("Also write JSON and a plot to this folder.", metavar="DIR")
@common
def command(common: Common, out: Path | None, trees: tuple[str, ...], **options: Any) -> None:
    """Measure verify passes of n rows and drafts of n tokens, and the speedup that follows by acceptance length."""
    common.prepare()
    from dfrot.bench.models.draft import bench_draft
    from dfrot.bench.models.draft_figure import plot_draft
    from dfrot.bench.models.presets import preset
    from dfrot.files import write_json
    from dfrot.generation.speculation.tree import TreeShape

    require_new(out, common)
    settings = vars(settings_from(DraftBenchSettings, options, seed=common.seed))
    preset(settings["shape"])
    settings = {**settings, "trees": tuple(TreeShape.parse(None, tree) for tree in trees)}
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
    where = f"{result['shape']} {result['scheme']}, {machine['threads']} threads, {machine['processor']}"
    title = f"{where}: n rows, n draft tokens"
    show.table(f"{title}; a step takes {1e3 * step:.1f} ms", heads, rows)
    trees = []
    for name, costs in result["trees"].items():
        row = [name, 1e3 * costs["verify"], costs["verify"] / step]
        for kind in result["draft"]:
            row += [1e3 * costs["draft"][kind], costs["break_even"][kind]]
        trees.append(row)
    if trees:
        show.table("trees", ["tree", *heads[1:]], trees)
    for kind, by_chance in result["speedup"].items():
        best_of = [(chance, best["guesses"], best["tau"], best["speedup"]) for chance, best in by_chance.items()]
        show.table(f"{kind} draft", ("acceptance rate", "best draft tokens", "tau", "speedup"), best_of)
