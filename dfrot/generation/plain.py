"""Plain decoding: one token per pass of the target. The reference that speculative decoding must reproduce."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dfrot.generation.output import GenerationOutput, StopCriteria, check_prompt
from dfrot.generation.prompt import prefill_prompt
from dfrot.generation.sampling import Sampling
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs


def plain(
    target: Target,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> GenerationOutput:
    """Continue a prompt of token ids. Raises InputError for a prompt that does not fit."""
    out = GenerationOutput()
    for _ in plain_steps(target, prompt, stop, sampling, out, seed, images):
        pass
    return out


@torch.inference_mode()
def plain_steps(
    target: Target,
    prompt: Sequence[int],
    stop: StopCriteria,
    sampling: Sampling,
    out: GenerationOutput,
    seed: int = 0,
    images: ImageInputs | None = None,
    observe: Callable[[Tensor, int], None] = lambda logits, token: None,
) -> Iterator[None]:
    """`plain` into `out`, pausing after every new token. Steps of several generations may be interleaved. observe:
    called with the logits float32 [V] and the token that was picked from them."""
    check_prompt(target, prompt, stop, images)
    generator = torch.Generator().manual_seed(seed)
    cache = target.start()
    first_logits = prefill_prompt(target, prompt, cache, images).logits
    out.tokens.append(sampling.pick(first_logits, prompt, generator))
    observe(first_logits, out.tokens[-1])
    yield
    begin = time.perf_counter()
    while not stop.ends(out.tokens):
        logits = target.step(out.tokens[-1], cache)
        out.tokens.append(sampling.pick(logits, [*prompt, *out.tokens] if sampling.needs_prefix else (), generator))
        observe(logits, out.tokens[-1])
        out.rounds += 1
        out.emitted += 1
        yield
    out.seconds = out.verify_seconds = time.perf_counter() - begin
