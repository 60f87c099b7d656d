"""What each part of the draft is worth: one table on one quantized target.

    python recipes/draft/ablations.py --target packed --rotated rotated --original reference --out ablations
    python recipes/draft/ablations.py --target packed --rotated rotated --original reference-vlm --out ablations \
        --dataset shapes --samples 192 --seqlen 64 --epochs 2 --prompts 50

Every row is trained on the same samples for the same number of steps at about the same number of parameters, and
serves the same quantized target, whose plain outputs are decoded once. With images (--dataset shapes) a draft learns
from answers that the model it learns from wrote. Finished rows are kept: run it again to go on, or with --seeds 0 1 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.metrics import summary
from dfrot.draft.store import load_draft
from dfrot.draft.training.loss import simulated_tau
from dfrot.draft.training.settings import TrainOptions
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape
from dfrot.hub import resolve_model
from dfrot.stage_folder import read_record
from dfrot.stages.draft.evaluate import load_prompts
from dfrot.stages.draft.extract import extract
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot.stages.draft.train import train
from dfrot.vision.conversations import has_images
from dfrot.vision.prompts import PromptWithImages, load_questions, prompt_reader
from dfrot.vision.settings import KEEP

SHAPES = {"chain 4": TreeShape(4), "tree 4,3,10": TreeShape(4, 3, 10)}
GREEDY = Sampling()


@dataclass(frozen=True)
class Row:
    """One draft: its settings, whose features it learns, and which extraction serves it."""

    name: str
    settings: DraftSettings
    learns_from: str = "target"
    features: str = "sample"
    keep: float = KEEP  # share of image tokens that it sees when serving
    draft: str = ""  # the row whose draft this is, if not its own


def rows(base: DraftSettings) -> list[Row]:
    """The rows of the table; widths of the MLPs make up for what a row lacks."""
    whole = [Row("no compression", base, keep=1.0, draft="dream")] if has_images(base.data.dataset) else []
    return [
        Row("dream", base),
        *whole,
        Row("no cross-attention", replace(base, cross=False, intermediate=848)),
        Row("eagle3", replace(base, arch="eagle3", intermediate=1024), features="eagle3"),
        Row("learnt from bf16", base, "rotated", "rotated"),
        Row("no lean to near features", replace(base, distance=False)),
        Row("static 0.75", replace(base, select="static:0.75"), features="static"),
        Row("no intermediate feature", replace(base, select="none")),
        Row("cold start", replace(base, warm=False)),
        Row("rotation unaware", base, "original", "original"),
    ]


def say(record: dict[str, Any]) -> None:
    agreement = " ".join(f"{share:.3f}" for share in record["held_out_agreement"])
    print(
        f"  step {record['step']}/{record['steps']}: tau {record['simulated_tau']:.3f} ({agreement})", file=sys.stderr
    )
    sys.stderr.flush()


class Judge:
    """Acceptance on held-out prompts of the target. eagle3 reads layers, which keeps the native decoder away; the
    outputs it must repeat are those of the same path."""

    def __init__(self, folder: Path, dataset: str, prompts: int, count: int) -> None:
        self.folder, self.dataset, self.prompts, self.count = folder, dataset, prompts, count
        self.known: dict[tuple[int, ...], tuple[Target, StopCriteria, list[list[int]]]] = {}

    def asked(self, keep: float) -> list[PromptWithImages]:
        """The held-out prompts."""
        if has_images(self.dataset):
            return load_questions(self.dataset, prompt_reader(self.folder), self.prompts, keep)
        texts = load_prompts(self.dataset, load_tokenizer(self.folder), self.prompts, 64)
        return [PromptWithImages(ids) for ids in texts]

    def __call__(self, folder: Path, keep: float) -> dict[str, Any]:
        draft, asked = load_draft(folder), self.asked(keep)
        layers = draft.config.aux_layers
        if layers not in self.known:
            target = load_target(self.folder, layers)
            limits = StopCriteria(self.count, end_token_ids(target) if has_images(self.dataset) else frozenset())
            told = [plain(target, one.ids, limits, GREEDY, images=one.images).tokens for one in asked]
            self.known[layers] = (target, limits, told)
        target, limits, told = self.known[layers]
        found: dict[str, Any] = {"parameters": draft.count()}
        for name, shape in SHAPES.items():
            outs: list[GenerationOutput] = [
                speculative(target, draft, one.ids, limits, GREEDY, shape, images=one.images) for one in asked
            ]
            same = sum(out.tokens == tokens for out, tokens in zip(outs, told))
            found[name] = {**summary(outs), "identical": f"{same}/{len(outs)}"}
        return found


def line(name: str, found: list[dict[str, Any]]) -> str:
    """Means over seeds, and the range of the acceptance length."""
    parts = [f"{name:<26}{found[0]['parameters'] / 1e6:>6.2f}M  {statistics.fmean(f['held_out'] for f in found):.3f}"]
    for shape in SHAPES:
        taus = [one[shape]["tau"] for one in found]
        at = [one[shape]["accept_at_position"] for one in found]
        means = [statistics.fmean(a[n] if n < len(a) else 0.0 for a in at) for n in range(max(map(len, at), default=0))]
        spread = f" ({min(taus):.3f} .. {max(taus):.3f})" if len(taus) > 1 else ""
        told = " ".join(f"{mean:.2f}" for mean in means)
        parts.append(f"{shape}: {statistics.fmean(taus):.3f}{spread} [{told}]")
    same = {one[shape]["identical"] for one in found for shape in SHAPES}
    return "  ".join([*parts, "identical " + ", ".join(sorted(same))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "rotated", "original", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--dataset", default="stdlib")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="Names of rows; all of them without it.")
    given = parser.parse_args()
    folders = {name: resolve_model(getattr(given, name)) for name in ("target", "rotated", "original")}
    out, judge = Path(given.out), Judge(folders["target"], given.dataset, given.prompts, given.new_tokens)
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in given.seeds:
        options = TrainOptions(epochs=given.epochs, batch=given.batch, lr=given.lr, evaluations=1, seed=seed)
        seen = has_images(given.dataset)
        data = DataSettings(given.dataset, given.samples, 8 if seen else 16, given.seqlen, regenerate=seen)
        for row in rows(DraftSettings(data=data, train=options)):
            if given.only and row.name not in given.only:
                continue
            folder, features = (
                out / f"{(row.draft or row.name).replace(' ', '-')}-{seed}",
                out / f"features-{row.features}",
            )
            print(f"{row.name}, seed {seed}", file=sys.stderr, flush=True)
            if not features.exists():
                extract(folders[row.learns_from], features, row.settings)
            if not folder.exists():
                train(folders[row.learns_from], folder, row.settings, features=features, report=say)
            history = read_record(folder, "draft train")["history"]
            best = max(simulated_tau(record["held_out_agreement"]) for record in history)
            table.setdefault(row.name, []).append({"seed": seed, "held_out": best, **judge(folder, row.keep)})
            print(line(row.name, table[row.name]), file=sys.stderr, flush=True)
            (out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"{'draft':<26}{'size':>6}   simulated tau on its own features; tau when serving, [accepted by position]")
    for name, found in table.items():
        print(line(name, found))


if __name__ == "__main__":
    main()
