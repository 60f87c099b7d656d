"""What a draft proposes along a given text: the rounds that decoding would take if the target wrote just that.

So the drafts of two engines can be compared on the same text, although their targets round differently and write
different ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfrot.draft.models.base import Draft
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target


@torch.inference_mode()
def replay(target: Target, draft: Draft, prompt: Sequence[int], text: Sequence[int], depth: int) -> list[int]:
    """Accepted draft tokens of every round along `text`, token ids behind `prompt`, the first of which comes from the
    prompt's pass. depth: draft tokens per round, fewer where the text ends."""
    tokens = list(text)
    passed = prefill_prompt(target, [*prompt, *tokens], target.start(), None)
    state = draft.begin(len(prompt) + len(tokens) + depth + 1)
    logits, token_ids = draft.proposal_logits(target), draft.token_ids
    accepted: list[int] = []
    root, read = 0, 0  # index of the round's root in `tokens`; positions whose embeddings the draft has read
    while root + 1 < len(tokens):
        end = len(prompt) + root + 1
        features = passed.features[max(read - 1, 0) : end - 1]
        output = state.extend(passed.embeddings[read:end], features, None)
        shape = TreeShape(min(depth, len(tokens) - root - 2))  # the round's last token is the target's own
        tree = expand(state, tokens[root], output, logits, target.embed, shape, token_ids)
        count = 0
        while count < shape.depth and tree.tokens[1 + count] == tokens[root + 1 + count]:
            count += 1
        accepted.append(count)
        root, read = root + count + 1, end
    return accepted
