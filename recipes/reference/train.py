"""Train the reference model: a small Llama on the standard library's own text, with planted massive activations.

    python recipes/reference/train.py --work build/reference --out dfrot/reference

The corpus is the standard library of the running interpreter (`--dataset stdlib`), so nothing is downloaded. The
embedding rows of BOS and of the form feed are held at large values in fixed channels from the first step on, and
training adapts to them. A killed run continues from its last checkpoint. See README.md for what to expect.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from export import export_model
from safetensors.torch import load_file, save_file
from tokenizer import BOS, DELIMITER, train_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dfrot.data.text import load_text


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    seed: int = 0
    steps: int = 800
    tokens_per_step: int = 8192
    short: int = 512  # sequence length of the first part
    long: int = 2048  # sequence length of the rest, which trains the positions that perplexity is measured at
    long_share: float = 0.25  # of the steps
    warmup: int = 60  # steps
    decay_share: float = 0.36  # of the steps, at the end
    muon_lr: float = 4e-3  # of Muon with RMS matching
    adam_lr: float = 4e-3  # of AdamW
    weight_decay: float = 0.05
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    massive: tuple[tuple[int, float], ...] = ((31, 2400.0), (147, -1440.0), (202, 480.0))  # channel, planted value


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The randomly initialised model; output projections of blocks start small, as is usual."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=recipe.long,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_(1 / math.sqrt(2 * recipe.layers))
    return model


class Pin:
    """Holds the embeddings of the rare tokens at the planted values; their other channels are trained."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = torch.tensor(tokenizer.convert_tokens_to_ids([BOS, DELIMITER]))
        self.channels = torch.tensor([channel for channel, _ in recipe.massive])
        self.values = torch.tensor([value for _, value in recipe.massive])

    @torch.no_grad()
    def __call__(self, model: LlamaForCausalLM) -> None:
        """Restore the planted values."""
        weight = model.model.embed_tokens.weight
        weight[self.rows[:, None], self.channels[None, :]] = self.values.expand(len(self.rows), -1)


def batch(tokens: Tensor, recipe: Recipe, step: int) -> Tensor:
    """Random windows int64 [n, S], BOS first. They depend on (seed, step) alone: a resumed run gets the same data."""
    length = recipe.short if step < recipe.steps * (1 - recipe.long_share) else recipe.long
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    count = recipe.tokens_per_step // length
    starts = torch.randint(1, len(tokens) - length, (count,), generator=generator)
    windows = tokens[starts[:, None] + torch.arange(length - 1)]
    return torch.cat([tokens[:1].expand(count, 1), windows], dim=1)


def rate(recipe: Recipe, step: int) -> float:
    """Warm-up, plateau, linear decay to zero."""
    decay = recipe.steps * recipe.decay_share
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / decay)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embedding, head and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    tables = [model.model.embed_tokens.weight, model.lm_head.weight]
    gains = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [{"params": tables, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.adam_lr,
        betas=(0.9, 0.95),
    )
    return [muon, adam]


def save(work: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], step: int) -> None:
    """One safetensors file with weights and optimizer state, replaced atomically."""
    state = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for number, opt in enumerate(opts):
        for index, slots in opt.state_dict()["state"].items():
            state |= {f"opt.{number}.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    temporary = work / "checkpoint.tmp"
    save_file(state, temporary, metadata={"step": str(step)})
    temporary.replace(work / "checkpoint.safetensors")
    (work / "step.json").write_text(json.dumps({"step": step}))


def restore(work: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]) -> int:
    """Load what `save` wrote; returns the step, 0 without a checkpoint."""
    if not (work / "step.json").exists():
        return 0
    state = load_file(work / "checkpoint.safetensors")
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    for number, opt in enumerate(opts):
        plain = opt.state_dict()
        for key, value in state.items():
            if key.startswith(f"opt.{number}."):
                index, slot = key.split(".")[2:]
                plain["state"].setdefault(int(index), {})[slot] = value
        opt.load_state_dict(plain)
    return int(json.loads((work / "step.json").read_text())["step"])


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: Tensor, windows: int, length: int = 2048) -> float:
    """Held-out perplexity under the GPTQ protocol, on the first `windows` windows."""
    losses = []
    for row in tokens[: windows * length].view(-1, length):
        logits = model(row[None]).logits[0, :-1].float()
        losses.append(cross_entropy(logits, row[1:]))
    return float(torch.stack(losses).mean().exp())


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and logs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the exported model.")
@click.option("--steps", default=Recipe.steps, show_default=True)
@click.option("--seed", default=Recipe.seed, show_default=True)
@click.option("--dataset", default="stdlib", show_default=True, help="Other text makes another model, not the shipped.")
@click.option("--threads", default=2, show_default=True)
@click.option("--export-only", is_flag=True, help="Export the last checkpoint and stop.")
def main(work: Path, out: Path, steps: int, seed: int, dataset: str, threads: int, export_only: bool) -> None:
    """Train and export the reference model."""
    torch.set_num_threads(threads)
    recipe = Recipe(steps=steps, seed=seed)
    work.mkdir(parents=True, exist_ok=True)
    text = load_text(dataset, "train").text
    if not (work / "tokenizer.json").exists():
        train_tokenizer(text, recipe.vocab_size, work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    held = torch.tensor(tokenizer(load_text(dataset, "test").text, verbose=False)["input_ids"])
    model, pin = build(recipe, tokenizer), Pin(recipe, tokenizer)
    opts = optimizers(model, recipe)
    first = restore(work, model, opts)
    pin(model)
    click.echo(f"train {len(tokens)} tokens, held out {len(held)}, starting at step {first}")
    if not export_only:
        train(recipe, model, opts, pin, tokens, held, work, first)
    name = Path(dataset).name if Path(dataset).exists() else dataset  # a path would tie the card to a machine
    facts = {"recipe": asdict(recipe), "dataset": name, "steps_done": recipe.steps if not export_only else first}
    export_model(model, tokenizer, text[:100_000], held, out, facts)


def train(
    recipe: Recipe,
    model: LlamaForCausalLM,
    opts: list[torch.optim.Optimizer],
    pin: Pin,
    tokens: Tensor,
    held: Tensor,
    work: Path,
    first: int,
) -> None:
    """Train with bf16 autocast and clipped gradients; the planted values are restored after every step."""
    start = time.monotonic()
    forward = torch.compile(model, dynamic=False)  # a quarter faster than eager on 2 cores
    base = [[group["lr"] for group in opt.param_groups] for opt in opts]
    base = [[recipe.muon_lr], [recipe.adam_lr, recipe.adam_lr]] if first else base
    for step in range(first, recipe.steps):
        rows = batch(tokens, recipe, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(rows[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, rates in zip(opts, base, strict=True):
            for group, lr in zip(opt.param_groups, rates, strict=True):
                group["lr"] = lr * rate(recipe, step)
            opt.step()
            opt.zero_grad(set_to_none=True)
        pin(model)
        if step % 10 == 0 or step + 1 == recipe.steps:
            speed = (step + 1 - first) * recipe.tokens_per_step / (time.monotonic() - start)
            click.echo(f"step {step} loss {loss.item():.4f} {speed:.0f} tokens/s")
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            save(work, model, opts, step + 1)
            click.echo(f"step {step + 1} held-out perplexity {perplexity(model, held, 4):.2f}")


if __name__ == "__main__":
    main()
