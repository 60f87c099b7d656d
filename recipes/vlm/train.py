"""Make the reference VLM: a small vision tower, a projector, and a low-rank change of the reference model's linears.

    python recipes/vlm/train.py --out build/vlm

First the tower is trained with throw-away classifiers to tell what is in each half of a picture, then all three are
trained on answers. Writes what `dfrot/reference/vlm` ships: `vision.json`, `vision.safetensors`, `delta.safetensors`,
`training.json`.
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
from dfrot.data.images import normalized_pixels
from dfrot.draft.training.optim import rate
from dfrot.files import write_json
from dfrot.hub import resolve_model
from dfrot.reference.build_vlm import merge_low_rank
from dfrot.runtime.load import load
from dfrot.tensor_file import save_tensors
from dfrot.vision.llava_layout import VisionConfig
from dfrot.vision.llava_model import compose, save_vision_of

IMAGE_TOKEN = 4094  # the last merge of the tokenizer, which the VLM gives up
BOS, EOS = 0, 1
IGNORED = -100  # label of tokens outside answers, as in torch
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
TOWER_SEED = 10_000_000  # first seed of the pictures of the first stage
BETAS = (0.9, 0.95)
REPORT_TOWER, REPORT, REPORT_ANSWERS = 250, 50, 100  # steps between messages
EVALUATION_BATCH = 32


@dataclass
class Recipe:
    """Settings of both stages."""

    tower_steps: int = 1500
    """Steps of the first stage."""
    tower_batch: int = 32
    """Pictures per step of the first stage."""
    tower_lr: float = 2e-3
    """Peak learning rate of the first stage."""
    steps: int = 600
    """Steps of the second stage."""
    batch: int = 16
    """Conversations per step of the second stage."""
    lr: float = 3e-3
    """Peak learning rate of the second stage."""
    tower_share: float = 0.3
    """The tower's share of it."""
    rank: int = 8
    """Of the change of every linear."""
    weight_decay: float = 0.01
    """Of all parameters."""
    held_out: int = 256
    """Conversations to evaluate on."""
    seed: int = 0
    """Of the initialisation."""


class LowRank(nn.Module):
    """A frozen linear and its change: x (W + B A)^T."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        return self.linear(x) + (x @ self.a.T) @ self.b.T  # type: ignore[no-any-return]


def add_low_rank(language_model: Any, rank: int) -> dict[str, LowRank]:
    """Put a LowRank around every linear of the blocks. Returns them by the name of the checkpoint's tensor."""
    changes = {}
    for name, module in list(language_model.named_modules()):
        if ".layers." in name and isinstance(module, nn.Linear):
            changes[f"{name}.weight"] = LowRank(module, rank)
            language_model.set_submodule(name, changes[f"{name}.weight"])
    return changes


def batch(seeds: range, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """ids int64 [B, n], padded at the end with EOS; labels, IGNORED outside answers; pixels [B, 3, H, W]."""
    rows = []
    for seed in seeds:
        sample = shapes.sample(seed)
        question = tokenizer(f"\n{sample.question}\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        prompt = [BOS, *[IMAGE_TOKEN] * PATCHES, *question]
        rows.append((prompt, [*answer, EOS], normalized_pixels(sample.picture, shapes.SIZE)))
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids = torch.full((len(rows), longest), EOS)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, answer, _) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels, torch.stack([picture for *_, picture in rows])


def train_tower(tower: nn.Module, recipe: Recipe) -> None:
    """First stage: thing and colour of both halves, classified from the tower's patches."""
    sizes = (len(THINGS), len(COLOURS))
    heads = nn.ModuleList([nn.Linear(TOWER["hidden_size"] * len(HALVES[0]), size) for _ in HALVES for size in sizes])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=BETAS, weight_decay=recipe.weight_decay)
    for step in range(recipe.tower_steps):
        first = TOWER_SEED + step * recipe.tower_batch
        samples = [shapes.sample(seed) for seed in range(first, first + recipe.tower_batch)]
        labels = torch.zeros(len(samples), 4, dtype=torch.long)
        for row, sample in enumerate(samples):
            for side, colour, thing in sample.things:
                column = 2 * list(shapes.SIDES).index(side)
                labels[row, column], labels[row, column + 1] = THINGS.index(thing), COLOURS.index(colour)
        _set_lr(optimizer, rate(step, recipe.tower_steps, recipe.tower_lr))
        pictures = torch.stack([normalized_pixels(sample.picture, shapes.SIZE) for sample in samples])
        patches = tower(pictures).last_hidden_state[:, 1:]
        logits = [head(patches[:, HALVES[n // 2]].flatten(1)) for n, head in enumerate(heads)]
        loss = torch.stack([cross_entropy(output, labels[:, n]) for n, output in enumerate(logits)]).sum()
        _descend(loss, optimizer)
        if (step + 1) % REPORT_TOWER == 0:
            right = [float((output.argmax(-1) == labels[:, n]).float().mean()) for n, output in enumerate(logits)]
            shares = " ".join(f"{share:.2f}" for share in right)
            print(f"tower, step {step + 1}/{recipe.tower_steps}: loss {float(loss.detach()):.3f}, {shares}", flush=True)


def train_answers(model: Any, changes: dict[str, LowRank], tokenizer: Any, recipe: Recipe) -> None:
    """Second stage: the answers, through the language model."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    factors = [factor for change in changes.values() for factor in (change.a, change.b)]
    groups = [{"params": [*projector.parameters(), *factors]}, {"params": list(tower.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=recipe.weight_decay)
    begin, recent = time.perf_counter(), []
    for step in range(recipe.steps):
        ids, labels, pictures = batch(range(step * recipe.batch, (step + 1) * recipe.batch), tokenizer)
        _set_lr(optimizer, rate(step, recipe.steps, recipe.lr), recipe.tower_share)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.model(input_ids=ids, pixel_values=pictures, use_cache=False).last_hidden_state[:, :-1]
            shifted = labels[:, 1:]
            logits = model.lm_head(out[shifted != IGNORED])
        loss = cross_entropy(logits.float(), shifted[shifted != IGNORED])
        _descend(loss, optimizer)
        recent.append(float(loss.detach()))
        if (step + 1) % REPORT == 0:
            mean, seconds = sum(recent[-REPORT:]) / REPORT, time.perf_counter() - begin
            print(f"step {step + 1}/{recipe.steps}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
        if (step + 1) % REPORT_ANSWERS == 0:
            print(f"held-out answers right: {right(model, tokenizer, 64)[0]:.3f}", flush=True)


@torch.no_grad()
def right(model: Any, tokenizer: Any, count: int) -> tuple[float, float]:
    """Of `count` held-out answers the share that is right word for word, and the share of right tokens. A token is
    right if it is the likeliest one behind the right ones, so that the first share is that of greedy decoding."""
    answers, tokens, all_tokens = 0, 0, 0
    last = shapes.HELD_OUT + count
    for first in range(shapes.HELD_OUT, last, EVALUATION_BATCH):
        ids, labels, pictures = batch(range(first, min(first + EVALUATION_BATCH, last)), tokenizer)
        out = model.model(input_ids=ids, pixel_values=pictures, use_cache=False).last_hidden_state[:, :-1]
        counts = labels[:, 1:] != IGNORED
        same = model.lm_head(out).argmax(-1) == labels[:, 1:]
        answers += int((same | ~counts).all(1).sum())
        tokens, all_tokens = tokens + int((same & counts).sum()), all_tokens + int(counts.sum())
    return answers / count, tokens / all_tokens


def _set_lr(optimizer: torch.optim.Optimizer, lr: float, others: float = 1.0) -> None:
    """The first group gets `lr`, the others the share `others` of it."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = lr if number == 0 else lr * others


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Train both stages and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tower-steps", type=int, default=Recipe.tower_steps)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, tower_steps=arguments.tower_steps)
    language_model, tokenizer = load(resolve_model("reference"), "float32")
    config = VisionConfig(TOWER, IMAGE_TOKEN)
    torch.manual_seed(recipe.seed)
    model = compose(language_model, config).requires_grad_(False)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.requires_grad_(True)
    train_tower(model.model.vision_tower, recipe)
    changes = add_low_rank(language_model, recipe.rank)
    train_answers(model, changes, tokenizer, recipe)
    model.requires_grad_(False).eval()
    factors = {}
    for name, change in changes.items():  # evaluate the weights as they are stored
        factors |= {f"{name}.a": change.a.to(torch.bfloat16), f"{name}.b": change.b.to(torch.bfloat16)}
        change.linear.weight.copy_(merge_low_rank(change.linear.weight.to(torch.bfloat16), change.a, change.b))
        change.b.zero_()
    model.model.vision_tower.to(torch.bfloat16).float()
    model.model.multi_modal_projector.to(torch.bfloat16).float()
    answers, tokens = right(model, tokenizer, recipe.held_out)
    print(f"held-out answers right: {answers:.3f}, tokens {tokens:.3f}")
    save_vision_of(model, arguments.out, config, torch.bfloat16)
    save_tensors(arguments.out / "delta.safetensors", factors)
    write_json(arguments.out / "training.json", {**asdict(recipe), "answers_right": answers, "tokens_right": tokens})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
