"""Let the target write the answers: a draft should learn what its target says, not what a dataset says."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.multimodal_source import MultimodalSample
from dfrot.generation.load_target import end_token_ids
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.target import Target
from dfrot.stage_folder import Progress, silent
from dfrot.vision.image_inputs import ImageInputs

ROWS = 32  # sequences decoded side by side


@torch.no_grad()
def continuations(target: Target, prompts: Tensor, count: int) -> Tensor:
    """Greedy continuations int64 [B, count] of prompts int64 [B, P], all of one length."""
    cache = target.start()
    out = target.decoder(input_ids=prompts, past_key_values=cache, use_cache=True)
    found = []
    for number in range(count):
        token = target.head(out.last_hidden_state[:, -1:]).float().argmax(-1)
        found.append(token)
        if number + 1 < count:
            out = target.decoder(input_ids=token, past_key_values=cache, use_cache=True)
    return torch.cat(found, 1)


def answered(target: Target, prompt: list[int], given: dict[str, Tensor], longest: int) -> MultimodalSample | None:
    """A prompt, `given` what the processor made of its images, and the target's greedy answer, at most `longest` tokens
    together; None where it says less than two tokens."""
    room = longest - len(prompt)
    if room < 2:
        return None
    shown = ImageInputs(given) if given else None
    said = plain(target, prompt, StopCriteria(room, end_token_ids(target)), Sampling(), images=shown).tokens
    return MultimodalSample([*prompt, *said], len(prompt), given) if len(said) > 1 else None


def regenerate(target: Target, corpus: Corpus, prompt: int, progress: Progress = silent) -> Corpus:
    """A corpus whose rows are the first `prompt` tokens of each sample and the target's greedy continuation.

    Slots count from the first written token on. Conversations keep their prompt up to the first answer only if all
    prompts have one length; rows shorter than the prompt are left out."""
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
