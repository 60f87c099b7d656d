"""Answers written by the target: a draft should learn what its target generates, not what a dataset says."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.multimodal_data import MultimodalSample
from dfrot.generation.load_target import end_token_ids
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.target import Target
from dfrot.progress import Progress, silent
from dfrot.vision.image_inputs import ImageInputs

ROWS = 32  # sequences decoded together
MIN_ANSWER = 2  # tokens: the last one has no prediction that is used


@torch.no_grad()
def continuations(target: Target, prompts: Tensor, count: int) -> Tensor:
    """Greedy continuations int64 [B, count] of prompts int64 [B, P], all of one length."""
    cache = target.start()
    out = target.decoder(input_ids=prompts, past_key_values=cache, use_cache=True)
    tokens = []
    for step in range(count):
        token = target.head(out.last_hidden_state[:, -1:]).float().argmax(-1)
        tokens.append(token)
        if step + 1 < count:
            out = target.decoder(input_ids=token, past_key_values=cache, use_cache=True)
    return torch.cat(tokens, 1)


def answered(target: Target, prompt: list[int], inputs: dict[str, Tensor], longest: int) -> MultimodalSample | None:
    """A prompt and the target's greedy answer, together at most `longest` tokens. inputs: the processor's other
    tensors, empty without images. None where the answer has less than two tokens."""
    room = longest - len(prompt)
    if room < MIN_ANSWER:
        return None
    images = ImageInputs(inputs) if inputs else None
    answer = plain(target, prompt, StopCriteria(room, end_token_ids(target)), Sampling(), images=images).tokens
    return MultimodalSample([*prompt, *answer], len(prompt), inputs) if len(answer) >= MIN_ANSWER else None


def regenerate(target: Target, corpus: Corpus, prompt: int, progress: Progress = silent) -> Corpus:
    """A corpus of the first `prompt` tokens of each sequence and the target's greedy continuation, whose slots count.

    Sequences that are not longer than the prompt are left out."""
    usable = corpus.tokens[corpus.lengths > prompt]
    count = corpus.tokens.shape[1] - prompt
    written = []
    for part in torch.split(usable, ROWS):
        written.append(torch.cat([part[:, :prompt], continuations(target, part[:, :prompt], count)], 1))
        progress("the target writes answers", sum(map(len, written)), len(usable))
    tokens = torch.cat(written)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, prompt:] = True
    return Corpus(tokens, mask, torch.full((len(tokens),), tokens.shape[1]))
