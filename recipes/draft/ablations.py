"""What each part of the draft is worth: one table on one quantized target.

    python recipes/draft/ablations.py --target packed --rotated rotated --original reference --out ablations
    python recipes/draft/ablations.py --target packed --rotated rotated --original reference-vlm --out ablations \
        --dataset shapes --samples 192 --seqlen 64 --epochs 2 --prompts 50

Every row is a draft trained on the same samples for the same number of steps with about the same number of parameters,
and evaluated on the same quantized target, whose plain outputs are decoded once. With images (--dataset shapes) the
answers to learn are written by the model whose features are learned. Finished rows are kept: run it again to continue,
or with --seeds 0 1 2.
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
from dfrot.draft.training.settings import TrainSettings
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.hub import resolve_model
from dfrot.stage_folder import read_record
from dfrot.stages.draft.extract import extract
from dfrot.stages.draft.prompts import load_prompts
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot.stages.draft.train import train
from dfrot.vision.conversations import has_images
from dfrot.vision.prompts import PromptWithImages, load_questions, prompt_reader
from dfrot.vision.settings import KEEP

SHAPES = {"chain 4": TreeShape(4), "tree 4,3,10": TreeShape(4, 3, 10)}
GREEDY = Sampling()


PROMPT_TOKENS = 64  # of text prompts


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    """Shown in the table."""
    settings: DraftSettings
    """Of the draft."""
    learns_from: str = "target"
    """Whose features it learns: target, rotated or original."""
    features: str = "sample"
    """Name of the folder of extracted features."""
    keep: float = KEEP
    """Share of image tokens that the draft gets when it is evaluated."""
    draft: str = ""
    """The row whose draft this one evaluates, if not its own."""


def rows(base: DraftSettings) -> list[Row]:
    """The rows of the table. Widths of the MLPs make up for the parameters that a row lacks."""
    all_tokens = [Row("no compression", base, keep=1.0, draft="dream")] if has_images(base.data.dataset) else []
    return [
        Row("dream", base),
        *all_tokens,
        Row("no cross-attention", replace(base, cross=False, intermediate=848)),
        Row("eagle3", replace(base, arch="eagle3", intermediate=1024), features="eagle3"),
        Row("learnt from bf16", base, "rotated", "rotated"),
        Row("no lean to near features", replace(base, distance=False)),
        Row("static 0.75", replace(base, select="static:0.75"), features="static"),
        Row("no intermediate feature", replace(base, select="none")),
        Row("cold start", replace(base, warm=False)),
        Row("rotation unaware", base, "original", "original"),
    ]


def report(record: dict[str, Any]) -> None:
    """Print an evaluation of a training."""
    agreement = " ".join(f"{share:.3f}" for share in record["held_out_agreement"])
    line = f"  step {record['step']}/{record['steps']}: tau {record['simulated_tau']:.3f} ({agreement})"
    print(line, file=sys.stderr, flush=True)


class Evaluation:
    """Acceptance on held-out prompts of the target. An eagle3 draft reads layers, which keeps the native decoder from
    serving; its outputs are compared with plain outputs of the same path."""

    def __init__(self, folder: Path, dataset: str, prompts: int, count: int) -> None:
        """folder: of the target. prompts: how many. count: new tokens of each."""
        self.folder, self.dataset, self.count, self.max_new_tokens = folder, dataset, prompts, count
        self.plain_outputs: dict[tuple[int, ...], tuple[Target, StopCriteria, list[list[int]]]] = {}  # by aux layers

    def prompts(self, keep: float) -> list[PromptWithImages]:
        """The held-out prompts. keep: share of image tokens that the draft gets."""
        if has_images(self.dataset):
            return load_questions(self.dataset, prompt_reader(self.folder), self.count, keep)
        texts = load_prompts(self.dataset, load_tokenizer(self.folder), self.count, PROMPT_TOKENS)
        return [PromptWithImages(ids) for ids in texts]

    def __call__(self, folder: Path, keep: float) -> dict[str, Any]:
        """The numbers of the draft in `folder`, JSON."""
        draft, prompts = load_draft(folder), self.prompts(keep)
        layers = draft.aux_layers
        if layers not in self.plain_outputs:
            target = load_target(self.folder, layers)
            eos = end_token_ids(target) if has_images(self.dataset) else frozenset()
            stop = StopCriteria(self.max_new_tokens, eos)
            reference = [plain(target, prompt.ids, stop, GREEDY, images=prompt.images).tokens for prompt in prompts]
            self.plain_outputs[layers] = (target, stop, reference)
        target, stop, reference = self.plain_outputs[layers]
        numbers: dict[str, Any] = {"parameters": draft.count()}
        for name, shape in SHAPES.items():
            outputs: list[GenerationOutput] = [
                speculative(target, draft, prompt.ids, stop, GREEDY, shape, images=prompt.images) for prompt in prompts
            ]
            same = sum(out.tokens == tokens for out, tokens in zip(outputs, reference))
            numbers[name] = {**summary(outputs), "identical": f"{same}/{len(outputs)}"}
        return numbers


def line(name: str, results: list[dict[str, Any]]) -> str:
    """Means over seeds, and the range of the acceptance length."""
    held_out = statistics.fmean(result["held_out"] for result in results)
    parts = [f"{name:<26}{results[0]['parameters'] / 1e6:>6.2f}M  {held_out:.3f}"]
    for shape in SHAPES:
        taus = [result[shape]["tau"] for result in results]
        accept_at = [result[shape]["accept_at_position"] for result in results]
        positions = range(max(map(len, accept_at), default=0))
        means = [statistics.fmean(a[n] if n < len(a) else 0.0 for a in accept_at) for n in positions]
        spread = f" ({min(taus):.3f} .. {max(taus):.3f})" if len(taus) > 1 else ""
        by_position = " ".join(f"{mean:.2f}" for mean in means)
        parts.append(f"{shape}: {statistics.fmean(taus):.3f}{spread} [{by_position}]")
    identical = {result[shape]["identical"] for result in results for shape in SHAPES}
    return "  ".join([*parts, "identical " + ", ".join(sorted(identical))])


def main() -> None:
    """Train and evaluate every row, and print the table."""
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
    arguments = parser.parse_args()
    folders = {name: resolve_model(getattr(arguments, name)) for name in ("target", "rotated", "original")}
    out = Path(arguments.out)
    evaluate = Evaluation(folders["target"], arguments.dataset, arguments.prompts, arguments.new_tokens)
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        options = TrainSettings(
            epochs=arguments.epochs, batch=arguments.batch, lr=arguments.lr, evaluations=1, seed=seed
        )
        images = has_images(arguments.dataset)
        data = DataSettings(
            arguments.dataset, arguments.samples, 8 if images else 16, arguments.seqlen, regenerate=images
        )
        for row in rows(DraftSettings(data=data, train=options)):
            if arguments.only and row.name not in arguments.only:
                continue
            folder = out / f"{(row.draft or row.name).replace(' ', '-')}-{seed}"
            features = out / f"features-{row.features}"
            print(f"{row.name}, seed {seed}", file=sys.stderr, flush=True)
            if not features.exists():
                extract(folders[row.learns_from], features, row.settings)
            if not folder.exists():
                train(folders[row.learns_from], folder, row.settings, features=features, report=report)
            history = read_record(folder, "draft train")["history"]
            best = max(simulated_tau(record["held_out_agreement"]) for record in history)
            table.setdefault(row.name, []).append({"seed": seed, "held_out": best, **evaluate(folder, row.keep)})
            print(line(row.name, table[row.name]), file=sys.stderr, flush=True)
            (out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"{'draft':<26}{'size':>6}   simulated tau on its own features; tau when serving, [accepted by position]")
    for name, results in table.items():
        print(line(name, results))


if __name__ == "__main__":
    main()
