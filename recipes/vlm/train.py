"""Teach the reference model to see: a small vision tower, a projector, and a low-rank change of its own linears.

    python recipes/vlm/train.py --out build/vlm

First the tower learns, with throw-away classifiers, what stands in each half of a picture; then all three learn to say
it. Writes what `dfrot/reference/vlm` ships: `vision.json`, `vision.safetensors`, `delta.safetensors`, `training.json`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dfrot.data import shapes
from dfrot.data.images import pixels
from dfrot.draft.store import save_tensors
from dfrot.draft.training.optim import rate
from dfrot.files import write_json
from dfrot.hub import resolve_model
from dfrot.reference.build_vlm import merge_low_rank
from dfrot.runtime.load import load
from dfrot.vision.llava_layout import VisionConfig, compose, save_vision_of

IMAGE_TOKEN = 4094  # the last merge of the tokenizer, which the model that sees gives up
PATCHES = 16
TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
HALVES = [[4 * row + column for row in range(4) for column in half] for half in ((0, 1), (2, 3))]
THINGS, COLOURS = ["", *shapes.SHAPES, *shapes.WORDS], ["", *shapes.COLOURS]
LOOKED_AT = 10_000_000  # seeds of the first stage from here on


@dataclass
class Recipe:
    """Steps and samples per step of the two stages; peak learning rates; the tower's share of it in the second."""

    tower_steps: int = 1500
    tower_batch: int = 32
    tower_lr: float = 2e-3
    steps: int = 600
    batch: int = 16
    lr: float = 3e-3
    tower_share: float = 0.3
    rank: int = 8
    weight_decay: float = 0.01
    held_out: int = 256
    seed: int = 0


class LowRank(nn.Module):
    """A frozen linear and its change: x (W + B A)^T."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.a.T) @ self.b.T  # type: ignore[no-any-return]


def loosen(language_model: Any, rank: int) -> dict[str, LowRank]:
    """Put a LowRank around every linear of the blocks. Returns them by the name of the checkpoint's tensor."""
    found = {}
    for name, module in list(language_model.named_modules()):
        if ".layers." in name and isinstance(module, nn.Linear):
            found[f"{name}.weight"] = LowRank(module, rank)
            language_model.set_submodule(name, found[f"{name}.weight"])
    return found


def batch(seeds: range, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """ids int64 [B, n], padded behind with the end token; labels with -100 outside answers; pixels [B, 3, H, W]."""
    found = []
    for seed in seeds:
        one = shapes.sample(seed)
        asked = tokenizer(f"\n{one.question}\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        found.append(([0, *[IMAGE_TOKEN] * PATCHES, *asked], [*answer, 1], pixels(one.picture, shapes.SIZE)))
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in found)
    ids = torch.full((len(found), longest), 1)
    labels = torch.full((len(found), longest), -100)
    for row, (prompt, answer, _) in enumerate(found):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels, torch.stack([seen for *_, seen in found])


def look(tower: nn.Module, recipe: Recipe) -> None:
    """First stage: thing and colour of both halves from the tower's patches."""
    sizes = (len(THINGS), len(COLOURS))
    heads = nn.ModuleList([nn.Linear(TOWER["hidden_size"] * len(HALVES[0]), size) for _ in HALVES for size in sizes])
    optimizer = torch.optim.AdamW(
        [*tower.parameters(), *heads.parameters()], betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    for step in range(recipe.tower_steps):
        first = LOOKED_AT + step * recipe.tower_batch
        found = [shapes.sample(seed) for seed in range(first, first + recipe.tower_batch)]
        wanted = torch.zeros(len(found), 4, dtype=torch.long)
        for row, one in enumerate(found):
            for side, colour, thing in one.things:
                place = 2 * list(shapes.SIDES).index(side)
                wanted[row, place], wanted[row, place + 1] = THINGS.index(thing), COLOURS.index(colour)
        _pace(optimizer, rate(step, recipe.tower_steps, recipe.tower_lr))
        seen = tower(torch.stack([pixels(one.picture, shapes.SIZE) for one in found])).last_hidden_state[:, 1:]
        said = [head(seen[:, HALVES[n // 2]].flatten(1)) for n, head in enumerate(heads)]
        loss = torch.stack([cross_entropy(one, wanted[:, n]) for n, one in enumerate(said)]).sum()
        _descend(loss, optimizer)
        if (step + 1) % 250 == 0:
            right = [float((one.argmax(-1) == wanted[:, n]).float().mean()) for n, one in enumerate(said)]
            told = " ".join(f"{share:.2f}" for share in right)
            print(f"tower, step {step + 1}/{recipe.tower_steps}: loss {float(loss.detach()):.3f}, {told}", flush=True)


def speak(model: Any, changes: dict[str, LowRank], tokenizer: Any, recipe: Recipe) -> None:
    """Second stage: the answers, through the language model."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    learnt = [factor for one in changes.values() for factor in (one.a, one.b)]
    groups = [{"params": [*projector.parameters(), *learnt]}, {"params": list(tower.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    begin, recent = time.perf_counter(), []
    for step in range(recipe.steps):
        ids, labels, seen = batch(range(step * recipe.batch, (step + 1) * recipe.batch), tokenizer)
        _pace(optimizer, rate(step, recipe.steps, recipe.lr), recipe.tower_share)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.model(input_ids=ids, pixel_values=seen, use_cache=False).last_hidden_state[:, :-1]
            wanted = labels[:, 1:]
            logits = model.lm_head(out[wanted != -100])
        loss = cross_entropy(logits.float(), wanted[wanted != -100])
        _descend(loss, optimizer)
        recent.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            mean, seconds = sum(recent[-50:]) / 50, time.perf_counter() - begin
            print(f"step {step + 1}/{recipe.steps}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
        if (step + 1) % 100 == 0:
            print(f"held-out answers right: {right(model, tokenizer, 64)[0]:.3f}", flush=True)


@torch.no_grad()
def right(model: Any, tokenizer: Any, count: int) -> tuple[float, float]:
    """Shares of held-out answers whose every token, and of their tokens that, is the most likely one behind the right
    ones: the first is the share of greedy answers that come out word for word."""
    whole, tokens, of = 0, 0, 0
    for first in range(shapes.HELD_OUT, shapes.HELD_OUT + count, 32):
        ids, labels, seen = batch(range(first, min(first + 32, shapes.HELD_OUT + count)), tokenizer)
        out = model.model(input_ids=ids, pixel_values=seen, use_cache=False).last_hidden_state[:, :-1]
        counts = labels[:, 1:] != -100
        same = model.lm_head(out).argmax(-1) == labels[:, 1:]
        whole += int((same | ~counts).all(1).sum())
        tokens, of = tokens + int((same & counts).sum()), of + int(counts.sum())
    return whole / count, tokens / of


def _pace(optimizer: torch.optim.Optimizer, lr: float, others: float = 1.0) -> None:
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = lr if number == 0 else lr * others


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tower-steps", type=int, default=Recipe.tower_steps)
    given = parser.parse_args()
    recipe = Recipe(steps=given.steps, tower_steps=given.tower_steps)
    language_model, tokenizer = load(resolve_model("reference"), "float32")
    config = VisionConfig(TOWER, IMAGE_TOKEN)
    torch.manual_seed(recipe.seed)
    model = compose(language_model, config).requires_grad_(False)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.requires_grad_(True)
    look(model.model.vision_tower, recipe)
    changes = loosen(language_model, recipe.rank)
    speak(model, changes, tokenizer, recipe)
    model.requires_grad_(False).eval()
    factors = {}
    for name, one in changes.items():  # as they are stored
        factors |= {f"{name}.a": one.a.to(torch.bfloat16), f"{name}.b": one.b.to(torch.bfloat16)}
        one.linear.weight.copy_(merge_low_rank(one.linear.weight.to(torch.bfloat16), one.a, one.b))
        one.b.zero_()
    model.model.vision_tower.to(torch.bfloat16).float()
    model.model.multi_modal_projector.to(torch.bfloat16).float()
    answers, tokens = right(model, tokenizer, recipe.held_out)
    print(f"held-out answers right: {answers:.3f}, tokens {tokens:.3f}")
    save_vision_of(model, given.out, config, torch.bfloat16)
    save_tensors(given.out / "delta.safetensors", factors)
    write_json(given.out / "training.json", {**asdict(recipe), "answers_right": answers, "tokens_right": tokens})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
