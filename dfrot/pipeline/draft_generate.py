"""`dfq draft generate`, and the same as one call on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.draft.base import Draft
from dfrot.draft.cost import choose, measure
from dfrot.draft.decode import Limits, Output, plain, speculative
from dfrot.draft.store import check_target
from dfrot.draft.target import Target
from dfrot.draft.tree import Shape
from dfrot.draft.warp import Sampling
from dfrot.hf.generate import hook
from dfrot.hf.load import load_model
from dfrot.hf.tokens import load_tokenizer
from dfrot.pipeline.draft_eval import load_in
from dfrot.stage import read_evidence

GREEDY = Sampling()


@dataclass(frozen=True)
class GenerateSettings:
    """shape: (depth, top-k, total), or None to choose from measured costs. stop: strings that end the text."""

    prompt: str
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    shape: tuple[int, int, int] | None = None
    sampling: Sampling = Sampling()
    force: bool = False
    seed: int = 0
    draft_dtype: str = "auto"


def generate_text(model: Path, draft: Path | None, settings: GenerateSettings) -> dict[str, Any]:
    """Returns text, tokens, how they came about, acceptance length and decode speed."""
    loaded = None if draft is None else load_in(draft, settings.draft_dtype)
    target = Target(load_model(model), () if loaded is None else loaded.config.aux_layers)
    tokenizer = load_tokenizer(model)
    prompt = list(tokenizer(settings.prompt)["input_ids"])
    ends = target.model.generation_config.eos_token_id
    eos = frozenset() if settings.ignore_eos or ends is None else frozenset([ends] if isinstance(ends, int) else ends)
    limits = Limits(settings.max_new_tokens, eos, settings.stop, tokenizer.decode)
    if loaded is None or draft is None:
        out, how = plain(target, prompt, limits, settings.sampling, settings.seed), "plain, no draft given"
    else:
        size = int(target.config.hidden_size)
        check_target(loaded.config, model, target.vocab_size, size, settings.force)
        shape = None if settings.shape is None else Shape(*settings.shape)
        out, how = generate(
            target, loaded, prompt, limits, settings.sampling, shape, settings.seed, held_out_agreement(draft)
        )
    return {
        "text": tokenizer.decode(out.tokens),
        "tokens": out.tokens,
        "how": how,
        "tau": out.tau,
        "rounds": out.rounds,
        "tokens_per_second": out.emitted / out.seconds if out.seconds else 0.0,
    }


def held_out_agreement(draft: Path) -> list[float]:
    """Held-out agreement by step of the best evaluation in the draft's record."""
    history = read_evidence(draft, "draft train")["history"]
    best = max(history, key=lambda record: float(record["simulated_tau"]))
    return [float(share) for share in best["held_out_agreement"]]


def generate(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    limits: Limits,
    sampling: Sampling = GREEDY,
    shape: Shape | None = None,
    seed: int = 0,
    agreement: Sequence[float] = (),
) -> tuple[Output, str]:
    """Decode with the best chain for this machine, or plainly where none pays. Returns the output and how it was made.

    shape: no choice, this one. agreement: chances that guesses stand, from the draft's training."""
    if shape is None:
        most = min(6, max(1, target.max_length - len(prompt) - 8))
        guesses, gain = choose(measure(target, draft, prompt, most), agreement)
        if guesses == 0:
            told = f"plain: drafting does not pay here (best expected speedup {gain:.2f})"
            return plain(target, prompt, limits, sampling, seed), told
        shape = Shape(guesses)
        out = speculative(target, draft, prompt, limits, sampling, shape, seed)
        return out, f"speculative, chain {guesses} (expected speedup {gain:.2f}), tau {out.tau:.2f}"
    out = speculative(target, draft, prompt, limits, sampling, shape, seed)
    kind = f"chain {shape.depth}" if shape.topk == 1 else f"tree {shape.depth},{shape.topk},{shape.total}"
    return out, f"speculative, {kind}, tau {out.tau:.2f}"


def custom_generate(
    model: Any, draft: Draft, shape: Shape | None = None, seed: int = 0, agreement: Sequence[float] = ()
) -> Any:
    """For a loaded model: `model.generate(ids, custom_generate=custom_generate(model, draft), max_new_tokens=64)`.

    Greedy and sampling, with whatever logits processors `generate` was asked for; rows of a batch one by one."""
    target = Target(model, draft.config.aux_layers)

    def decode(prompt: list[int], longest: int, eos: frozenset[int], processor: Any, do_sample: bool) -> list[int]:
        sampling = Sampling(1.0 if do_sample else 0.0, processors=() if processor is None else (processor,))
        limits = Limits(longest, eos)
        return generate(target, draft, prompt, limits, sampling, shape, seed, agreement)[0].tokens

    return hook(decode)
