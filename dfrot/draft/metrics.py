"""Numbers of a comparison between plain and speculative decoding, with one definition each.

tau counts tokens per verify pass, the bonus included, prompt pass and first token excluded; accepted_per_round is
tau without the bonus; accept_at_position[i] is the share of rounds that accepted at least i + 1 guesses.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from dfrot.generation.output import GenerationOutput
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


def summary(outputs: Sequence[GenerationOutput]) -> dict[str, Any]:
    """Of speculative outputs."""
    rounds = max(1, sum(out.rounds for out in outputs))
    accepted = [count for out in outputs for count in out.accepted]
    deepest = max(accepted, default=0)
    at = [sum(count > position for count in accepted) / rounds for position in range(deepest)]
    tau = sum(out.emitted for out in outputs) / rounds
    other = sum(out.seconds - out.draft_seconds - out.verify_seconds for out in outputs)
    return {
        "tau": tau,
        "accepted_per_round": sum(accepted) / rounds,
        "accept_at_position": at,
        "conditional_accept_at_position": [now / before for now, before in zip(at, [1.0, *at])],
        "rounds": rounds,
        "nodes_per_round": sum(out.nodes for out in outputs) / rounds,
        "forced": sum(out.forced for out in outputs),
        "draft_ms": 1e3 * sum(out.draft_seconds for out in outputs) / rounds,
        "verify_ms": 1e3 * sum(out.verify_seconds for out in outputs) / rounds,
        "other_ms": 1e3 * other / rounds,
    }


def speeds(pairs: Sequence[tuple[GenerationOutput, GenerationOutput]]) -> dict[str, Any]:
    """Of (plain, speculative) outputs of the same prompts with the same tokens: decode tokens/s and their ratio."""
    ratios = [before.seconds / after.seconds for before, after in pairs if after.seconds > 0 and before.rounds]
    if not ratios:
        return {"speedup": None}
    ordered = sorted(ratios)
    plain_tokens = sum(before.emitted for before, _ in pairs)
    fast_tokens = sum(after.emitted for _, after in pairs)
    return {
        "plain_tokens_per_second": plain_tokens / sum(before.seconds for before, _ in pairs),
        "tokens_per_second": fast_tokens / sum(after.seconds for _, after in pairs),
        "speedup": statistics.median(ratios),
        "speedup_quartiles": [ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]],
    }


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Where two outputs part, None if they are the same."""
    for place, (one, other) in enumerate(zip(left, right)):
        if one != other:
            return place
    return None if len(left) == len(right) else min(len(left), len(right))


@torch.inference_mode()
def classify(
    target: Target, prompt: Sequence[int], told: Sequence[int], place: int, rows: int, images: ImageInputs | None = None
) -> dict[str, Any]:
    """Why greedy outputs part at new token `place`: `near-tie` if the two best logits lie closer together than a
    block of `rows` rows moves them, else `BUG`. told: the plain output."""
    cache = target.start()
    logits = prefill_prompt(target, prompt, cache, images).logits
    for token in told[:place]:
        logits = target.step(token, cache)
    best = logits.topk(2).values
    margin = float(best[0] - best[1])
    moved = 0.0
    if place:
        again = target.start()
        prefill_prompt(target, prompt, again, images)
        for token in told[: max(0, place - rows)]:
            target.step(token, again)
        block = list(told[max(0, place - rows) : place])
        _, blockwise = target.verify(block, list(range(-1, len(block) - 1)), again)
        moved = float((blockwise[-1] - logits).abs().max())
    return {"place": place, "margin": margin, "block_difference": moved, "class": _class(margin, moved)}


def _class(margin: float, moved: float) -> str:
    return "near-tie" if margin <= 2 * moved else "BUG"
