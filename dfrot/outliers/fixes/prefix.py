"""Sink prefix: tokens that carry massive activations are put before every text, so that no token inside it needs to.

The prefix depends on nothing but itself: its keys and values are computed once per text (or once, with a prompt cache)
and stay in full precision when the checkpoint is quantized with as many sink tokens (the idea of PrefixQuant,
arXiv 2410.05265). Here it becomes part of what the tokenizer puts before a text.
"""

from __future__ import annotations

from dfrot.errors import UnsupportedError
from dfrot.outliers.fixes.base import Change, Context

MAX_TOKENS = 4


class PrefixFix:
    """Fix `prefix`."""

    name = "prefix"
    modes: tuple[str, ...] = ("tokens",)

    def plan(self, context: Context, mode: str) -> Change:
        """As `Fix.plan`."""
        counts: dict[int, int] = {}
        for channel in context.report["massive"]["channels"]:
            for token in channel["tokens"]:
                counts[token["id"]] = max(counts.get(token["id"], 0), token["count"])
        if not counts:
            raise UnsupportedError(
                "fix prefix: the report names no token with a massive activation; nothing to put first"
            )
        first = int(context.tokens[0, 0])  # what the tokenizer puts first stays first
        order = sorted(counts, key=lambda token: (token != first, -counts[token], token))[:MAX_TOKENS]
        return Change(prefix=order, account={"tokens": order, "sink_tokens": len(order)})
