"""`dfq bench draft`: what a verify pass of n rows and a draft of n guesses cost, and what speedup follows from them.

Costs do not depend on what the weights say, so random ones serve. A round of n guesses costs n draft passes and a
verify pass of n + 1 rows; at acceptance length tau it gives tau tokens, of which plain decoding gives one per step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe
from dfrot.bench.clock import race
from dfrot.bench.machine import machine
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build, config_for
from dfrot.draft.proposal_head import proposal_head
from dfrot.draft.quantize import quantize_draft
from dfrot.errors import InputError, ResourceError
from dfrot.generation.expand import expand
from dfrot.generation.target import Target
from dfrot.generation.tree import Tree, TreeShape
from dfrot.runtime.load import load_model
from dfrot.stage_folder import Progress, silent

ROWS = (1, 2, 4, 8, 16, 32, 64)
DRAFTS = ("bfloat16", "w4")
AGREEMENTS = (0.5, 0.6, 0.7, 0.8, 0.9)


def bench_draft(
    shape: str = "1.1b",
    scheme: str = "w4a4kv4",
    *,
    rows: Sequence[int] = ROWS,
    drafts: Sequence[str] = DRAFTS,
    trees: Sequence[TreeShape] = (),
    prompt: int = 128,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Seconds by number of rows, interleaved in one process, JSON: `step`, `verify[n]`, `draft[kind][n]` (n guesses),
    and per kind of draft `speedup`: by agreement of guesses the best number of them and the speedup to expect, and
    `break_even[n]`, the acceptance length from which n guesses pay. `trees`: by name the same of whole trees.

    shape: one of presets.PRESETS, with random packed weights and a head in 16 bits, through which drafts are trained;
    4-bit drafts guess from a 4-bit copy of it. drafts: bfloat16, w4 or w8: dream drafts of the target's
    width. prompt: positions in the cache."""
    if prompt < 2 or repeats < 1 or not rows or min(rows) < 1:
        raise InputError("prompt of at least 2, repeats and rows of at least 1 are needed")
    config = preset(shape)
    if any(one.topk < 2 for one in trees):
        raise InputError("--tree of one child per node is a chain, which --rows measures")
    if prompt + max([*rows, *(one.depth * one.topk**2 for one in trees)]) + 8 > config["max_position_embeddings"]:
        raise InputError(f"--prompt {prompt}: exceeds the context of {shape}; shorten it")
    with tempfile.TemporaryDirectory(prefix="dfq-bench-") as folder:
        progress("write the target", 0, 1)
        target = Target(load_model(random_checkpoint(Path(folder) / "target", config, scheme, seed, True)))
    made = {kind: _draft(config, kind, seed) for kind in drafts}
    progress("time", 0, 1)
    seconds = _times(target, made, sorted(set(rows)), trees, prompt, repeats, seed)
    step, verify = seconds["step"], {n: seconds[f"verify {n}"] for n in sorted(set(rows))}
    costs = {kind: {n: seconds[f"{kind} {n}"] for n in verify} for kind in drafts}
    return {
        "shape": shape,
        "scheme": scheme,
        "prompt": prompt,
        "target_parameters": sum(map(_size, describe(config).tensors().values())),
        "draft_parameters": made[drafts[0]][1] if drafts else None,
        "step": step,
        "verify": verify,
        "draft": costs,
        "trees": {tree.name: _tree(tree.name, step, seconds, drafts) for tree in trees},
        "break_even": {kind: break_even(step, verify, cost) for kind, cost in costs.items()},
        "speedup": {kind: by_agreement(step, verify, cost) for kind, cost in costs.items()},
        "machine": machine(),
    }


def _tree(name: str, step: float, seconds: dict[str, float], drafts: Sequence[str]) -> dict[str, Any]:
    """Of one tree: seconds of its verify pass and of each draft that grows it, and the acceptance length that pays."""
    verify, cost = seconds[f"verify {name}"], {kind: seconds[f"{kind} {name}"] for kind in drafts}
    return {"verify": verify, "draft": cost, "break_even": {kind: (verify + cost[kind]) / step for kind in drafts}}


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _draft(config: dict[str, Any], kind: str, seed: int) -> tuple[Draft, int]:
    """A random draft of the target's width, and its parameters."""
    torch.manual_seed(seed)
    draft = build(config_for(describe(config), "dream")).requires_grad_(False).eval()
    count = draft.count()
    if kind in ("w4", "w8"):
        quantize_draft(draft, kind)
    elif kind != "bfloat16":
        raise InputError(f"--drafts {kind}: use bfloat16, w4 or w8")
    return draft.to(torch.bfloat16), count


@torch.inference_mode()
def _times(
    target: Target,
    drafts: dict[str, tuple[Draft, int]],
    rows: Sequence[int],
    trees: Sequence[TreeShape],
    length: int,
    repeats: int,
    seed: int,
) -> dict[str, float]:
    """Median seconds of everything, in turns."""
    ids = torch.randint(3, target.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    token, cache = int(ids[-1]), target.start()
    features, _ = target.prefill(ids, cache)

    def verify(parents: list[int]) -> None:
        target.verify([token] * len(parents), parents, cache)
        target.keep(cache, length, len(parents), [])

    def step() -> None:
        target.step(token, cache)
        target.keep(cache, length, 1, [])

    most = max([*rows, *(tree.depth * tree.topk for tree in trees)])
    calls: dict[str, list[Callable[[], Any]]] = {"step": [step]}
    calls |= {f"verify {n}": [lambda n=n: verify(list(range(-1, n - 1)))] for n in rows}  # type: ignore[misc]
    for kind, (draft, _) in drafts.items():
        guess = _guesser(target, draft, ids, features, most)
        calls |= {f"{kind} {n}": [lambda n=n, guess=guess: guess(TreeShape(n))] for n in rows}  # type: ignore[misc]
        for tree in trees:
            parents = guess(tree).parents
            calls[f"verify {tree.name}"] = [lambda parents=parents: verify(parents)]  # type: ignore[misc]
            calls[f"{kind} {tree.name}"] = [lambda tree=tree, guess=guess: guess(tree)]  # type: ignore[misc]
    return {name: found.median for name, found in race(calls, repeats).items()}


def _guesser(
    target: Target, draft: Draft, ids: torch.Tensor, features: torch.Tensor, most: int
) -> Callable[[TreeShape], Tree]:
    """A function that drafts behind the same root again and again: extending by one slot, then growing by at most
    `most` nodes."""
    state = draft.begin(len(ids) + 2 + most)
    state.extend(target.embed(ids), features[:-1])
    head, root, mark = proposal_head(target, draft), int(ids[-1]), state.mark()

    def guess(shape: TreeShape) -> Tree:
        output = state.extend(target.embed(ids[-1:]), features[-1:])
        found = expand(state, root, output, lambda out: draft.logits(out, head), target.embed, shape)
        state.back(mark)
        return found

    return guess


def _round(n: int, verify: dict[int, float], draft: dict[int, float]) -> float:
    """Seconds of a round of n guesses; the verify pass of n + 1 rows between measured sizes on a straight line."""
    sizes = sorted(verify)
    above = next((size for size in sizes if size >= n + 1), sizes[-1])
    below = max((size for size in sizes if size <= n + 1), default=above)
    share = (n + 1 - below) / (above - below) if above > below else 0.0
    cost = verify[below] + share * (verify[above] - verify[below])
    if n + 1 > sizes[-1]:
        cost *= (n + 1) / sizes[-1]
    return cost + draft[n]


def break_even(step: float, verify: dict[int, float], draft: dict[int, float]) -> dict[int, float]:
    """Acceptance length at which n guesses are as fast as plain decoding; above n + 1 they never are."""
    return {n: _round(n, verify, draft) / step for n in sorted(draft)}


def by_agreement(step: float, verify: dict[int, float], draft: dict[int, float]) -> dict[str, dict[str, float]]:
    """Per chance that a guess stands: the measured number of guesses with the best speedup."""
    found = {}
    for chance in AGREEMENTS:
        taus = {n: (1 - chance ** (n + 1)) / (1 - chance) for n in draft}
        speedups = {n: taus[n] * step / _round(n, verify, draft) for n in draft}
        best = max(speedups, key=lambda n: speedups[n])
        found[f"{chance:g}"] = {"guesses": best, "tau": taus[best], "speedup": speedups[best]}
    return found


def plot(result: dict[str, Any], path: Path) -> None:
    """Speedup over acceptance length, a line per number of guesses up to the acceptance length n + 1 that it can have.
    Raises ResourceError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("the figure needs matplotlib, which is not installed: pip install 'dfq[plot]'") from None
    sheet = Figure(figsize=(4.5 * len(result["draft"]) + 1, 4.2), layout="constrained")
    axes: Any = sheet.subplots(1, len(result["draft"]), squeeze=False, sharey=True)
    for axis, kind in zip(axes[0], result["draft"]):
        for n, even in result["break_even"][kind].items():
            if n <= 16:
                taus = [1 + n * share / 40 for share in range(41)]
                axis.plot(taus, [tau / even for tau in taus], label=f"{n} guesses")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xlabel="acceptance length", title=f"{kind} draft", xscale="log", xticks=[1, 2, 3, 5, 9, 17])
        axis.set_xticklabels(["1", "2", "3", "5", "9", "17"])
        axis.minorticks_off()
        axis.grid(True, alpha=0.25)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("speedup over plain decoding")
    used = result["machine"]
    sheet.suptitle(f"{result['shape']} {result['scheme']}, {used['processor']}, {used['threads']} threads", fontsize=10)
    sheet.savefig(path, dpi=130)
