"""What each part of the draft is worth: one table on one quantized target.

    python recipes/draft/ablations.py --target packed --rotated rotated --original reference --out ablations

Every row is trained on the same samples for the same number of steps, at about the same number of parameters, and
served on the same quantized target. Finished rows are kept: run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.draft.store import load_draft
from dfrot.draft.train import TrainOptions
from dfrot.models import resolve
from dfrot.pipeline.draft import DataSettings, DraftSettings, extract, train
from dfrot.pipeline.draft_eval import EvalSettings, evaluate


@dataclass(frozen=True)
class Row:
    """One draft: its settings, whose features it learns, and which extraction serves it."""

    name: str
    settings: DraftSettings
    learns_from: str = "target"
    features: str = "sample"


def rows(base: DraftSettings) -> list[Row]:
    """The table of the issue; widths of the MLPs make up for what a row lacks."""
    return [
        Row("dream", base),
        Row("no cross-attention", replace(base, cross=False, intermediate=848)),
        Row("static 0.75", replace(base, select="static:0.75"), features="static"),
        Row("no intermediate feature", replace(base, select="none")),
        Row("eagle3", replace(base, arch="eagle3", intermediate=1024), features="eagle3"),
        Row("learnt from bf16", base, "rotated", "rotated"),
        Row("rotation unaware", base, "original", "original"),
    ]


def say(record: dict[str, Any]) -> None:
    agreement = " ".join(f"{share:.3f}" for share in record["held_out_agreement"])
    print(
        f"  step {record['step']}/{record['steps']}: tau {record['simulated_tau']:.3f} ({agreement}), "
        f"loss {record.get('loss', float('nan')):.3f}, {record['tokens_per_second']:.0f} tokens/s",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "rotated", "original", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seqlen", type=int, default=192)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--only", nargs="*", help="Names of rows; all of them without it.")
    given = parser.parse_args()
    folders = {name: resolve(getattr(given, name)) for name in ("target", "rotated", "original")}
    out = Path(given.out)
    options = TrainOptions(epochs=given.epochs, batch=given.batch, lr=given.lr, evaluations=4, seed=given.seed)
    base = DraftSettings(data=DataSettings(samples=given.samples, held_out=8, seqlen=given.seqlen), train=options)
    table = []
    for row in rows(base):
        if given.only and row.name not in given.only:
            continue
        folder = out / f"{row.name.replace(' ', '-')}-{given.seed}"
        model = folders[row.learns_from]
        features = out / f"features-{row.features}"
        print(row.name, file=sys.stderr, flush=True)
        if not folder.exists():
            if not features.exists():
                extract(model, features, row.settings)
            train(model, folder, row.settings, features=features, report=say)
        force = row.learns_from != "target"
        report = evaluate(
            folders["target"], folder, EvalSettings(prompts=given.prompts, max_new_tokens=given.new_tokens, force=force)
        )
        table.append({"name": row.name, "parameters": load_draft(folder).count(), **report})
        (out / f"table-{given.seed}.json").write_text(json.dumps(table, indent=2) + "\n")
        for shape, found in report["shapes"].items():
            at = " ".join(f"{share:.3f}" for share in found["accept_at_position"])
            print(f"{row.name:<24} {shape:<8} tau {found['tau']:.3f}  {at}  identical {found['identical']}", flush=True)


if __name__ == "__main__":
    main()
