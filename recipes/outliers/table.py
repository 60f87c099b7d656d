"""Two tables, means over seeds: what each fix of outliers changes, and which recipe quantizes best.

    python recipes/outliers/table.py --out build/outliers              # the reference model
    python recipes/outliers/table.py --model DIR --dataset FILE.txt --out build/outliers --seeds 3

Finished rows are kept in --out: run it again to continue.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.files import read_json, write_json
from dfrot.hub import resolve_model
from dfrot.outliers import fixes
from dfrot.outliers.advice import DEFAULT_RECIPE, OutlierRecipe
from dfrot.stages.outliers.fix import fix
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.recipe import plain_perplexity, quantized_perplexity
from dfrot.stages.outliers.settings import FixSettings, OutlierSettings, RecipeSettings

RECIPES = {
    "default": DEFAULT_RECIPE,
    "Hadamard": replace(DEFAULT_RECIPE, rotation="hadamard"),
    "gamma 1": replace(DEFAULT_RECIPE, gamma="1"),
    "gamma 1000": replace(DEFAULT_RECIPE, gamma="1000"),
    "2 sink tokens": replace(DEFAULT_RECIPE, sink_tokens=2),
    "activation clip 0.95": replace(DEFAULT_RECIPE, a_clip=0.95),
    "activation clip 0.9": replace(DEFAULT_RECIPE, a_clip=0.9),
    "KV clip 0.95": replace(DEFAULT_RECIPE, kv_clip=0.95),
    "activation clip 0.95, KV clip 0.95": replace(DEFAULT_RECIPE, a_clip=0.95, kv_clip=0.95),
}


class Table:
    """Rows by name, written to a file as they are finished."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Any] = read_json(file) if file.exists() else {}

    def row(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row `name`, made if it is not in the file."""
        if name not in self.rows:
            print(f"{self.file.stem}: {name}", file=sys.stderr, flush=True)
            self.rows[name] = make()
            write_json(self.file, self.rows)
        return dict(self.rows[name])


def count_outliers(folder: Path, measured: OutlierSettings, work: Path) -> dict[str, Any]:
    """Outliers of a checkpoint and its mean 4-bit error, without a rotation; the report stays in `work`."""
    report = outliers(folder, work, measured, overwrite=True)
    errors = [row["error"] for row in report["ranking"] if row["what"] == "activations"]
    return {
        "massive": len(report["massive"]["channels"]),
        "channels": len(report["channel_outliers"]),
        "activation error": statistics.mean(errors),
    }


def over_seeds(
    folder: Path, recipe: OutlierRecipe, how: RecipeSettings, seeds: int, work: Path, prefix: Any
) -> list[float]:
    """Quantized perplexity, once per seed of rotation and calibration."""
    settings = [replace(how, seed=seed) for seed in range(seeds)]
    results = (quantized_perplexity(folder, recipe, seeded, work, prefix) for seeded in settings)
    return [float(result["perplexity"]) for result in results]


def fixed(name: str, args: argparse.Namespace, measured: OutlierSettings, how: RecipeSettings) -> dict[str, Any]:
    """One row of the first table: the checkpoint with one fix, or the reason why the fix was refused."""
    folder, prefix, resets = args.folder, (), False
    try:
        if name != "none":
            folder = args.out / "fixed"
            settings = FixSettings((name,), measured, how, quantized=False)
            record = fix(args.folder, folder, settings, args.out / "report", overwrite=True)
            resets = "resets" in read_json(folder / "config.json").get("quantization_config", {})
            plain, sinks = record["after"]["plain"]["perplexity"], record["sink_tokens"]
            prefix = tuple(record["account"][name]["tokens"]) if sinks else ()
        else:
            plain, sinks = plain_perplexity(folder, how)["perplexity"], 0
    except UnsupportedError as error:
        return {"refused": str(error)}
    recipe = replace(DEFAULT_RECIPE, rotation="none" if resets else DEFAULT_RECIPE.rotation, sink_tokens=sinks)
    quantized = over_seeds(folder, recipe, how, args.seeds, args.out / "made", prefix)
    row = {"plain": plain, "rotation": recipe.rotation, "quantized": quantized}
    row |= count_outliers(folder, measured, args.out / "counted")
    shutil.rmtree(args.out / "fixed", ignore_errors=True)
    return row


def by_recipe(recipe: OutlierRecipe, args: argparse.Namespace, how: RecipeSettings) -> dict[str, Any]:
    """One row of the second table."""
    return {"quantized": over_seeds(args.folder, recipe, how, args.seeds, args.out / "made", ())}


def cell(values: list[float], base: float) -> str:
    """Mean over seeds divided by bf16's, and the standard deviation."""
    ratios = [value / base for value in values]
    spread = f" ± {statistics.stdev(ratios):.4f}" if len(ratios) > 1 else ""
    return f"{math.exp(statistics.mean(map(math.log, ratios))):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--dataset", default="stdlib")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    args = parser.parse_args()
    args.folder = resolve_model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    how = RecipeSettings(dataset=args.dataset, windows=args.windows, samples=args.samples, calibration_seqlen=512)
    measured = OutlierSettings(dataset=args.dataset, rounds=20, ablate=False, perplexity=False, recipe=how)
    # A report of another model or other settings is refused: the rows beside it would be of that model too.
    folder = args.out / "report"
    report = outliers(args.folder, folder, measured, resume=True if folder.exists() else None)
    recommended = OutlierRecipe.from_dict(report["recommendation"])

    table = Table(args.out / f"fixes-{args.seeds}-seeds.json")
    base = table.row("none", functools.partial(fixed, "none", args, measured, how))["plain"]
    print("| fix | massive | channel outliers | activation error | bf16 | rotation | W4A4KV4, RTN |")
    print("|---|---|---|---|---|---|---|")
    for name in ("none", *fixes.fix_names()):
        row = table.row(name, functools.partial(fixed, name, args, measured, how))
        if "refused" in row:
            print(f"| {name} | {row['refused']} | | | | | |")
            continue
        cells = (row["massive"], row["channels"], f"{row['activation error']:.4f}", f"{row['plain'] / base:.4f}")
        print(f"| {name} | {' | '.join(map(str, cells))} | {row['rotation']} | {cell(row['quantized'], base)} |")

    print("\n| recipe | W4A4KV4, GPTQ |\n|---|---|")
    table, how = Table(args.out / f"recipes-{args.seeds}-seeds.json"), replace(how, algorithm="gptq")
    for name, recipe in {**RECIPES, "recommended": recommended}.items():
        make = functools.partial(by_recipe, recipe, args, how)
        print(f"| {name} | {cell(table.row(name, make)['quantized'], base)} |")


if __name__ == "__main__":
    main()
