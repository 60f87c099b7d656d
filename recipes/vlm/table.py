"""Drafts for the reference model that sees, its language model in W4A4KV4: acceptance on held-out images.

    python recipes/vlm/table.py --lm packed --rotated rotated --vision vlm/vision --out vlm/table

Rows: every image token a slot of the draft, or the three quarters that the question looks at most; no cross-attention.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import HELD_OUT, encoded

from dfrot.arch import describe
from dfrot.draft.build import build, config_for
from dfrot.draft.decode import Limits, plain, speculative
from dfrot.draft.metrics import summary
from dfrot.draft.prompt import Images
from dfrot.draft.store import fingerprint
from dfrot.draft.target import Target
from dfrot.draft.train import Trainer, TrainOptions
from dfrot.draft.tree import Shape
from dfrot.draft.visual import VisualSample, VisualSource
from dfrot.draft.warm import warm_start
from dfrot.draft.warp import Sampling
from dfrot.hf.load import check_folder, load
from dfrot.hf.vision import join, rotate_vision

ROWS: dict[str, tuple[float, dict[str, Any]]] = {
    "dream, keep 0.75": (0.75, {}),
    "dream, keep all": (1.0, {}),
    "no cross-attention, keep 0.75": (0.75, {"cross": False, "intermediate_size": 848}),
}
SHAPES = {"chain 3": Shape(3), "tree 4,3,10": Shape(4, 3, 10)}
GREEDY, END = Sampling(), frozenset([1])


def answered(target: Target, tokenizer: Any, seeds: range, longest: int) -> list[VisualSample]:
    """Prompts with what the target itself says to them."""
    found = []
    for seed in seeds:
        prompt, _, pixels = encoded(seed, tokenizer)
        given = {"pixel_values": pixels[None]}
        told = plain(target, prompt, Limits(longest, END), GREEDY, images=Images(given)).tokens
        if len(told) > 2:
            found.append(VisualSample([*prompt, *told], len(prompt), given))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("lm", "rotated", "vision", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--longest", type=int, default=32)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(given.lm)
    rotate_vision(given.vision, given.rotated, mark, given.out / "vision")
    language_model, tokenizer = load(given.lm, "float32")
    target = Target(join(language_model, given.out / "vision", mark))
    train = answered(target, tokenizer, range(10_000, 10_000 + given.samples), given.longest)
    held_out = answered(target, tokenizer, range(HELD_OUT, HELD_OUT + given.held_out), given.longest)
    checkpoint, _ = check_folder(given.lm)
    base = config_for(describe(checkpoint.config), "dream", target_fingerprint=mark)
    table: dict[str, Any] = {}
    print(f"{len(train)} samples, {len(held_out)} held-out prompts", flush=True)
    for name, (keep, changes) in ROWS.items():
        torch.manual_seed(0)
        draft = build(replace(base, **changes))
        warm_start(draft, target)
        source = VisualSource(target, train, held_out[:8], keep=keep)
        options = TrainOptions(epochs=given.epochs, batch=4, evaluations=1)
        with tempfile.TemporaryDirectory() as folder:
            Trainer(draft, source, target.embed, target.head, options, Path(folder)).run()
        draft.requires_grad_(False).eval()
        table[name] = {"parameters": draft.count()}
        for shape_name, shape in SHAPES.items():
            outs, same = [], 0
            for one in held_out:
                prompt, told = one.tokens[: one.prompt], one.tokens[one.prompt :]
                limits, images = Limits(given.longest, END), Images(one.given, keep)
                outs.append(speculative(target, draft, prompt, limits, GREEDY, shape, images=images))
                same += outs[-1].tokens == told
            found = {**summary(outs), "identical": f"{same}/{len(outs)}"}
            at = " ".join(f"{share:.2f}" for share in found["accept_at_position"])
            table[name][shape_name] = found
            print(
                f"{name:<30} {shape_name:<12} tau {found['tau']:.3f} [{at}] identical {found['identical']}", flush=True
            )
        (given.out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
