"""Metrics of speculative decoding against plain decoding, each defined once.

tau: tokens per verify pass, the bonus token included; the prompt's pass and the first token do not count.
accepted_per_round: tau without the bonus token. accept_at_position[i]: share of rounds that accepted at least i + 1
draft tokens. acceptance_rate: accepted draft tokens over verified ones. drafted_share: share of rounds that verified
any.
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
    """Metrics of speculative outputs, JSON."""
    rounds = max(1, sum(out.rounds for out in outputs))
    accepted = [count for out in outputs for count in out.accepted]
    longest = max(accepted, default=0)
    accept_at = [sum(count > position for count in accepted) / rounds for position in range(longest)]
    tau = sum(out.emitted for out in outputs) / rounds
    other = sum(out.seconds - out.draft_seconds - out.verify_seconds for out in outputs)
    return {
        "tau": tau,
        "accepted_per_round": sum(accepted) / rounds,
        "accept_at_position": accept_at,
        "conditional_accept_at_position": [share / before for share, before in zip(accept_at, [1.0, *accept_at])],
        "acceptance_rate": sum(accepted) / max(1, sum(out.nodes for out in outputs) - len(accepted)),
        "drafted_share": len(accepted) / rounds,
        "rounds": rounds,
        "nodes_per_round": sum(out.nodes for out in outputs) / rounds,
        "forced": sum(out.forced for out in outputs),
        "draft_ms": 1e3 * sum(out.draft_seconds for out in outputs) / rounds,
        "verify_ms": 1e3 * sum(out.verify_seconds for out in outputs) / rounds,
        "other_ms": 1e3 * other / rounds,
    }


def speeds(pairs: Sequence[tuple[GenerationOutput, GenerationOutput]]) -> dict[str, Any]:
    """Tokens per second behind the prompt, and speedup, of (plain, speculative) outputs of the same prompts with the
    same tokens; JSON."""
    ratios = [plain.seconds / fast.seconds for plain, fast in pairs if fast.seconds > 0 and plain.rounds]
    if not ratios:
        return {"speedup": None}
    ordered = sorted(ratios)
    return {
        "plain_tokens_per_second": sum(p.emitted for p, _ in pairs) / sum(p.seconds for p, _ in pairs),
        "tokens_per_second": sum(fast.emitted for _, fast in pairs) / sum(fast.seconds for _, fast in pairs),
        "speedup": statistics.median(ratios),
        "speedup_quartiles": [ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]],
    }


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """The index at which two token sequences differ first; None if they are the same."""
    for index, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


@torch.inference_mode()
def classify(
    target: Target,
    prompt: Sequence[int],
    plain_tokens: Sequence[int],
    index: int,
    rows: int,
    images: ImageInputs | None = None,
) -> dict[str, Any]:
    """Why greedy outputs differ at new token `index`: `near-tie` if the two best logits are closer than a verify pass
    of `rows` rows changes them, else `BUG`. plain_tokens: the output of plain decoding. Returns JSON."""
    cache = target.start()
    logits = prefill_prompt(target, prompt, cache, images).logits
    for token in plain_tokens[:index]:
        logits = target.step(token, cache)
    best = logits.topk(2).values
    margin = float(best[0] - best[1])
    difference = 0.0
    if index:
        verify_cache = target.start()
        prefill_prompt(target, prompt, verify_cache, images)
        first_row = max(0, index - rows)
        for token in plain_tokens[:first_row]:
            target.step(token, verify_cache)
        chain = list(plain_tokens[first_row:index])
        _, verify_logits = target.verify(chain, list(range(-1, len(chain) - 1)), verify_cache)
        difference = float((verify_logits[-1] - logits).abs().max())
    kind = "near-tie" if margin <= 2 * difference else "BUG"
    return {"place": index, "margin": margin, "block_difference": difference, "class": kind}
