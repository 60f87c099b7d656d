"""`dfq bench draft`: what a verify pass of n rows and n draft tokens cost, and the speedup that follows.

Costs do not depend on the values of weights, so weights are random. A round of n draft tokens costs n draft passes and
a verify pass of n + 1 rows. At acceptance length tau it yields tau tokens; plain decoding yields one per step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe
from dfrot.bench.clock import race
from dfrot.bench.machine import machine
from dfrot.bench.models.draft_costs import best_speedups, break_even_lengths
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.bench.settings import DraftBenchSettings
from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build, config_for
from dfrot.draft.proposal_head import proposal_head
from dfrot.draft.quantize import quantize_draft
from dfrot.errors import InputError
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.tree import Tree, TreeShape
from dfrot.generation.target import Target
from dfrot.progress import Progress, silent
from dfrot.runtime.load import load_model

ROWS = (1, 2, 4, 8, 16, 32, 64)
DRAFTS = ("bfloat16", "w4")
SPARE_POSITIONS = 8  # of the context, behind the prompt and the largest draft tree
MIN_TOKEN_ID = 3  # below are special tokens


def bench_draft(
    shape: str = DraftBenchSettings.shape,
    scheme: str = DraftBenchSettings.scheme,
    *,
    rows: Sequence[int] = DraftBenchSettings.rows,
    drafts: Sequence[str] = DraftBenchSettings.drafts,
    trees: Sequence[TreeShape] = (),
    prompt: int = DraftBenchSettings.prompt,
    repeats: int = DraftBenchSettings.repeats,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Seconds by number of rows, interleaved in one process; JSON.

    Keys: `step` (plain decoding), `verify[n]`, `draft[kind][n]` (n draft tokens); per kind of draft `speedup` (by
    acceptance rate: the best number of draft tokens and the speedup to expect) and `break_even[n]` (the acceptance
    length from which n draft tokens pay); `trees`: the same of whole draft trees, by name.

    Args:
        shape: one of presets.PRESETS, with random packed weights and a 16-bit head, as drafts are trained with. 4-bit
            drafts propose tokens through a 4-bit copy of the head.
        scheme: of the target.
        rows: numbers of rows of a verify pass, and of draft tokens.
        drafts: kinds of draft: bfloat16, w4 or w8. All are DREAM drafts of the target's width.
        trees: draft trees to time too.
        prompt: positions in the cache.
        repeats: samples.
        seed: of weights and token ids.

    Raises InputError for sizes that cannot be measured.
    """
    config = _checked_config(shape, rows, trees, prompt, repeats)
    with tempfile.TemporaryDirectory(prefix="dfq-bench-") as folder:
        progress("write the target", 0, 1)
        target = Target(load_model(random_checkpoint(Path(folder) / "target", config, scheme, seed, True)))
    built = {kind: _random_draft(config, kind, seed) for kind in drafts}
    parameters = built[drafts[0]][1] if drafts else None
    models = {kind: draft for kind, (draft, _) in built.items()}
    progress("time", 0, 1)
    sizes = sorted(set(rows))
    seconds = _time_all(target, models, sizes, trees, prompt, repeats, seed)
    step, verify = seconds["step"], {n: seconds[f"verify {n}"] for n in sizes}
    costs = {kind: {n: seconds[f"{kind} {n}"] for n in verify} for kind in drafts}
    return {
        "shape": shape,
        "scheme": scheme,
        "prompt": prompt,
        "target_parameters": sum(torch.Size(size).numel() for size in describe(config).tensors().values()),
        "draft_parameters": parameters,
        "step": step,
        "verify": verify,
        "draft": costs,
        "trees": {tree.name: _tree_costs(tree.name, step, seconds, drafts) for tree in trees},
        "break_even": {kind: break_even_lengths(step, verify, cost) for kind, cost in costs.items()},
        "speedup": {kind: best_speedups(step, verify, cost) for kind, cost in costs.items()},
        "machine": machine(),
    }


def _checked_config(
    shape: str, rows: Sequence[int], trees: Sequence[TreeShape], prompt: int, repeats: int
) -> dict[str, Any]:
    """The config of the target. Raises InputError for sizes that cannot be measured."""
    if prompt < 2 or repeats < 1 or not rows or min(rows) < 1:
        raise InputError(
            "`prompt` of at least 2, `repeats` and `rows` of at least 1 are needed", field=("prompt", "repeats", "rows")
        )
    config = preset(shape)
    if any(tree.topk < 2 for tree in trees):
        raise InputError(
            "`trees` of one child per node are chains, which `rows` measures", field=("trees", "rows"), limit=2
        )
    largest = max([*rows, *(tree.depth * tree.topk**2 for tree in trees)])
    context = config["max_position_embeddings"]
    if prompt + largest + SPARE_POSITIONS > context:
        message = f"`prompt={prompt}`: exceeds the context of {shape}; shorten it"
        raise InputError(message, field="prompt", limit=context)
    return config


def _random_draft(config: dict[str, Any], kind: str, seed: int) -> tuple[Draft, int]:
    """A random draft of the target's width, and its number of parameters."""
    torch.manual_seed(seed)
    draft = build(config_for(describe(config), "dream")).requires_grad_(False).eval()
    parameters = draft.count()
    if kind in ("w4", "w8"):
        quantize_draft(draft, kind)
    elif kind != "bfloat16":
        raise InputError(f"`drafts={kind}`: use bfloat16, w4 or w8", field="drafts")
    return draft.to(torch.bfloat16), parameters


@torch.inference_mode()
def _time_all(
    target: Target,
    drafts: dict[str, Draft],
    rows: Sequence[int],
    trees: Sequence[TreeShape],
    length: int,
    repeats: int,
    seed: int,
) -> dict[str, float]:
    """Median seconds of steps, verify passes and drafting, in turns; by name. length: positions in the cache."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MIN_TOKEN_ID, target.vocab_size, (length,), generator=generator)
    token, cache = int(ids[-1]), target.start()
    features, _ = target.prefill(ids, cache)

    def verify(parents: list[int]) -> None:
        target.verify([token] * len(parents), parents, cache)
        target.keep(cache, length, len(parents), [])

    def step() -> None:
        target.step(token, cache)
        target.keep(cache, length, 1, [])

    max_nodes = max([*rows, *(tree.depth * tree.topk for tree in trees)])
    calls: dict[str, list[Callable[[], Any]]] = {"step": [step]}
    calls |= {f"verify {n}": [partial(verify, list(range(-1, n - 1)))] for n in rows}
    for kind, draft in drafts.items():
        grow = _tree_builder(target, draft, ids, features, max_nodes)
        calls |= {f"{kind} {n}": [partial(grow, TreeShape(n))] for n in rows}
        for tree in trees:
            calls[f"verify {tree.name}"] = [partial(verify, grow(tree).parents)]
            calls[f"{kind} {tree.name}"] = [partial(grow, tree)]
    return {name: timing.median for name, timing in race(calls, repeats).items()}


def _tree_builder(
    target: Target, draft: Draft, ids: torch.Tensor, features: torch.Tensor, max_nodes: int
) -> Callable[[TreeShape], Tree]:
    """A function that drafts behind the same root each time: one extension of the draft's state, then a tree of at most
    `max_nodes` nodes."""
    state = draft.begin(len(ids) + 2 + max_nodes)
    state.extend(target.embed(ids), features[:-1])
    head, root, mark = proposal_head(target, draft), int(ids[-1]), state.mark()

    def grow(shape: TreeShape) -> Tree:
        output = state.extend(target.embed(ids[-1:]), features[-1:])
        tree = expand(state, root, output, lambda hidden: draft.logits(hidden, head), target.embed, shape)
        state.back(mark)
        return tree

    return grow


def _tree_costs(name: str, step: float, seconds: dict[str, float], drafts: Sequence[str]) -> dict[str, Any]:
    """Seconds of a tree's verify pass and of each draft that grows it, and the acceptance length from which it pays."""
    verify, cost = seconds[f"verify {name}"], {kind: seconds[f"{kind} {name}"] for kind in drafts}
    return {"verify": verify, "draft": cost, "break_even": {kind: (verify + cost[kind]) / step for kind in drafts}}
