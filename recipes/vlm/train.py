"""Teach the reference model to see: a small vision tower and projector, and the language model with them.

    python recipes/vlm/train.py --out build/vlm

Writes `lm`, a plain checkpoint that dfq rotates and quantizes like any other, and `vision` (dfrot/hf/vision.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from common import HELD_OUT, IMAGE_TOKEN, TOWER, batch, encoded
from torch.nn.functional import cross_entropy

from dfrot.draft.decode import Limits, plain
from dfrot.draft.optim import rate
from dfrot.draft.prompt import Images
from dfrot.draft.target import Target
from dfrot.draft.warp import Sampling
from dfrot.hf.load import load
from dfrot.hf.vision import VisionConfig, compose, save_vision_of
from dfrot.models import resolve


def right(model: torch.nn.Module, tokenizer: object, count: int) -> float:
    """Share of held-out answers that come out word for word, greedily."""
    target, same = Target(model), 0
    for seed in range(HELD_OUT, HELD_OUT + count):
        prompt, answer, pixels = encoded(seed, tokenizer)
        images = Images({"pixel_values": pixels[None]})
        said = plain(target, prompt, Limits(len(answer), frozenset([1])), Sampling(), images=images).tokens
        same += said == answer
    return same / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="Of tower and projector; the language model has 0.4 of it."
    )
    parser.add_argument("--held-out", type=int, default=32)
    given = parser.parse_args()
    source = resolve("reference")
    language_model, tokenizer = load(source, "float32")
    config = VisionConfig(TOWER, IMAGE_TOKEN)
    torch.manual_seed(0)
    model = compose(language_model, config).requires_grad_(True)
    model.get_input_embeddings().requires_grad_(False)  # the planted massive rows stay
    new = [p for name, p in model.named_parameters() if "language_model" not in name and "lm_head" not in name]
    known = {id(p) for p in new}
    old = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    optimizer = torch.optim.AdamW([{"params": new}, {"params": old}], betas=(0.9, 0.95), weight_decay=0.01)
    begin = time.perf_counter()
    for step in range(given.steps):
        ids, labels, pixels = batch([step * given.batch + n for n in range(given.batch)], tokenizer)
        for group, share in zip(optimizer.param_groups, (1.0, 0.4)):
            group["lr"] = share * rate(step, given.steps, given.lr)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*new, *old], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{given.steps}: loss {loss:.3f}, {time.perf_counter() - begin:.0f} s", flush=True)
    model.requires_grad_(False).eval()
    print(f"held-out answers right: {right(model, tokenizer, given.held_out):.3f}", flush=True)
    lm = given.out / "lm"
    lm.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, lm / file.name)
    language_model.to(torch.bfloat16).save_pretrained(lm)
    kept = json.loads((source / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(kept, indent=2) + "\n")
    save_vision_of(model, given.out / "vision", config)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
