"""`dfq draft generate`, and the same as one call on a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfrot.data.images import read_image
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.load import load_in
from dfrot.draft.models.base import Draft
from dfrot.draft.store import check_target
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation_policy import AdaptivePolicy, MeasuredShape
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import custom_generate_hook
from dfrot.generation.tree import TreeShape
from dfrot.stages.draft.settings import GenerateSettings
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.prompts import prompt_reader

GREEDY = Sampling()
MEASURING = 0.1  # of the time that plain decoding takes, for measuring shapes


def _prompt(model: Path, settings: GenerateSettings) -> tuple[Any, list[int], ImageInputs | None]:
    """Tokenizer, token ids and images."""
    if not settings.images:
        tokenizer = load_tokenizer(model)
        return tokenizer, list(tokenizer(settings.prompt)["input_ids"]), None
    reader = prompt_reader(model)
    asked = [*({"type": "image"} for _ in settings.images), {"type": "text", "text": settings.prompt}]
    pictures = [read_image(file) for file in settings.images]
    ids, given = reader.seen([{"role": "user", "content": asked}], pictures, "--prompt")
    return reader.tokenizer, ids, ImageInputs(given, settings.keep)


def generate_text(model: Path, draft: Path | None, settings: GenerateSettings) -> dict[str, Any]:
    """Returns text, tokens, how they came about, acceptance length and decode speed."""
    loaded = None if draft is None else load_in(draft, settings.draft_dtype)
    tokenizer, prompt, images = _prompt(model, settings)
    aux = () if loaded is None else loaded.config.aux_layers
    target = load_target(model, aux, drafted=loaded is not None)
    eos = frozenset() if settings.ignore_eos else end_token_ids(target)
    limits = StopCriteria(settings.max_new_tokens, eos, settings.stop, tokenizer.decode)
    choice = None
    if loaded is None:
        out, how = plain(target, prompt, limits, settings.sampling, settings.seed, images), "plain, no draft given"
    else:
        size = int(target.config.hidden_size)
        check_target(loaded.config, model, target.vocab_size, size, settings.force)
        shape = None if settings.shape is None else TreeShape(*settings.shape)
        choice = chooser(loaded, limits, settings.sampling) if shape is None else None
        out, how = generate(target, loaded, prompt, limits, settings.sampling, choice or shape, settings.seed, images)
    return {
        "text": tokenizer.decode(out.tokens),
        "tokens": out.tokens,
        "how": how,
        "choice": None if choice is None else choice.to_dict(),
        "tau": out.tau,
        "rounds": out.rounds,
        "tokens_per_second": out.emitted / out.seconds if out.seconds else 0.0,
    }


def chooser(
    draft: Draft, limits: StopCriteria, sampling: Sampling, options: Sequence[MeasuredShape] = ()
) -> AdaptivePolicy:
    """The choice for one text, measured when it begins unless `options` of another text are given."""
    return AdaptivePolicy(draft.rates, sampling.greedy, MEASURING * limits.max_new_tokens, options)


def generate(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    limits: StopCriteria,
    sampling: Sampling = GREEDY,
    shape: TreeShape | AdaptivePolicy | None = None,
    seed: int = 0,
    images: ImageInputs | None = None,
) -> tuple[GenerationOutput, str]:
    """Decode with the shape that suits this machine and text, or plainly where none pays. Returns the output and how
    it was made.

    shape: no choice, this one; or the choice, whose `to_dict` tells more afterwards. The draft's `rates` say how often
    its guesses stand: a draft without them decodes plainly unless it is given a shape."""
    shape = shape or chooser(draft, limits, sampling)
    if isinstance(shape, AdaptivePolicy) and shape.rates is None:
        return plain(target, prompt, limits, sampling, seed, images), shape.why()
    out = speculative(target, draft, prompt, limits, sampling, shape, seed, images)
    told = shape.why() if isinstance(shape, AdaptivePolicy) else f"speculative, {shape.name}"
    return out, f"{told}, tau {out.tau:.2f}" if out.accepted else told


def custom_generate(
    model: Any,
    draft: Draft,
    shape: TreeShape | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda how: None,
) -> Any:
    """For a loaded model: `model.generate(ids, custom_generate=custom_generate(model, draft), max_new_tokens=64)`.

    Greedy and sampling, with whatever logits processors `generate` was asked for; rows of a batch one by one, images in
    a single row (`model.generate(**processor(...), ...)`). Without a shape the first row's measurements serve all.
    report: is told of every row how it was decoded."""
    target = Target(model, draft.config.aux_layers)
    options: list[MeasuredShape] = []

    def decode(
        prompt: list[int], longest: int, eos: frozenset[int], processor: Any, do_sample: bool, given: dict[str, Any]
    ) -> list[int]:
        sampling = Sampling(1.0 if do_sample else 0.0, processors=() if processor is None else (processor,))
        limits = StopCriteria(longest, eos)
        choice = chooser(draft, limits, sampling, options) if shape is None else None
        images = ImageInputs(given) if given else None
        out, how = generate(target, draft, prompt, limits, sampling, choice or shape, seed, images)
        if choice is not None:
            options[:] = choice.options
        report(how)
        return out.tokens

    return custom_generate_hook(decode)
