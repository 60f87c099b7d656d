"""Text from a checkpoint, piece by piece: what `dfq generate` prints and `dfq serve` sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfrot.data.conversation_rows import MAX_IMAGES
from dfrot.data.images import read_image
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.load import load_in
from dfrot.draft.store import check_target
from dfrot.errors import InputError
from dfrot.generation.latency_probe import LatencyProbe
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain_steps
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation_policy import AdaptivePolicy, MeasuredShape
from dfrot.generation.speculative import speculative_steps
from dfrot.generation.text_stream import TextStream
from dfrot.generation.tree import TreeShape
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.prompts import find_prompt_reader

Finish = Literal["stop", "length"]
_PROBE = 32  # tokens of the prompt behind which drafting costs are measured
_MEASURING = 64  # plain steps in whose time they are, at the start


@dataclass(frozen=True)
class TextRequest:
    """prompt: token ids. stops: strings that end the text and are cut off. max_new_tokens None: up to the end of the
    context. ignore_eos: go on behind the end-of-text token. images: of `Engine.encode_seen`, which made the prompt."""

    prompt: tuple[int, ...]
    max_new_tokens: int | None = None
    stops: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    seed: int = 0
    ignore_eos: bool = False
    images: ImageInputs | None = None


class Engine:
    """A loaded checkpoint with its tokenizer and, if given, its draft. Generations may take turns in one thread."""

    def __init__(
        self,
        model: Path,
        draft: Path | None = None,
        shape: tuple[int, int, int] | None = None,
        force: bool = False,
        draft_dtype: str = "auto",
    ) -> None:
        """shape: (depth, top-k, total) of the guesses; None chooses chain or tree from costs measured here, or none at
        all where drafting does not pay, and every text corrects that. force: also a draft of another target. Raises
        DfqError in one line."""
        self.draft = None if draft is None else load_in(draft, draft_dtype)
        aux = () if self.draft is None else self.draft.config.aux_layers
        self.target = load_target(model, aux, drafted=self.draft is not None)
        self.sighted = find_prompt_reader(model)
        self.tokenizer = load_tokenizer(model) if self.sighted is None else self.sighted.tokenizer
        self.ends = end_token_ids(self.target)
        self.shape: TreeShape | None = None
        self.options: list[MeasuredShape] = []  # measured shapes, where none was given
        self.how = "plain, no draft given"
        if self.draft is not None and draft is not None:
            size = int(self.target.config.hidden_size)
            check_target(self.draft.config, model, self.target.vocab_size, size, force)
            self.shape = None if shape is None else TreeShape(*shape)
            self.how = self._measure() if self.shape is None else f"speculative, {self.shape.name}"

    def _measure(self) -> str:
        """Measure shapes for all texts to come. Returns what is chosen for greedy ones."""
        assert self.draft is not None
        choice = AdaptivePolicy(self.draft.rates, True, _MEASURING)
        if choice.measures:
            prompt = (torch.arange(_PROBE) % (self.target.vocab_size - 1)).tolist()
            meter = LatencyProbe.behind(self.target, self.draft, prompt, choice.widest + 2)
            choice.start(meter, lambda: meter.spent, self.target.max_length - _PROBE - 1)
            self.options = choice.options
        return choice.why()

    @property
    def context(self) -> int:
        """Positions of prompt and text together."""
        return self.target.max_length

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text to be continued, with the tokenizer's BOS."""
        return tuple(self.tokenizer(text, verbose=False)["input_ids"])

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation (role and content each), ready for the assistant's turn."""
        if not self.chats:
            raise InputError("this model has no chat template: continue a text instead (a prompt, /v1/completions)")
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises whatever its author liked
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"messages: refused by the model's chat template ({reason})") from None
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def sees(self) -> bool:
        """Whether prompts may hold images."""
        return self.sighted is not None

    def encode_seen(
        self, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Tensor]
    ) -> tuple[tuple[int, ...], ImageInputs]:
        """Token ids of a conversation whose contents are texts or lists of parts ({"type": "text", "text"}, {"type":
        "image"}), and its pictures uint8 [H, W, 3], in the order of their parts."""
        if self.sighted is None:
            raise InputError("this model takes no images; leave them out, or serve one that sees")
        if not self.chats:
            raise InputError("this model has no chat template, which says where images stand; add one to its folder")
        if len(pictures) > MAX_IMAGES:
            raise InputError(f"{len(pictures)} images; {MAX_IMAGES} at most")
        ids, given = self.sighted.seen([dict(message) for message in messages], pictures, "messages")
        return tuple(ids), ImageInputs(given)

    def encode_question(
        self, text: str, images: Sequence[Path], system: str | None = None
    ) -> tuple[tuple[int, ...], ImageInputs]:
        """`encode_seen` of image files and a text behind them."""
        pictures = [read_image(file) for file in images]
        asked = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        first = [{"role": "system", "content": system}] if system else []
        return self.encode_seen([*first, {"role": "user", "content": asked}], pictures)

    def start(self, request: TextRequest) -> Generation:
        """A generation that has not begun. Raises InputError for a prompt that does not fit."""
        return Generation(self, request)


class Generation:
    """One text on its way: iterate over its pieces. `out` and `finish` are complete when the iteration is."""

    def __init__(self, engine: Engine, request: TextRequest) -> None:
        left = engine.context - len(request.prompt)
        count = left if request.max_new_tokens is None else request.max_new_tokens
        if not request.prompt:
            raise InputError("the prompt holds no token; give some text")
        if min(request.prompt) < 0 or max(request.prompt) >= engine.target.vocab_size:
            raise InputError(f"the prompt holds a token id outside 0..{engine.target.vocab_size - 1}")
        if count < 1 or count > left:
            raise InputError(
                f"{len(request.prompt)} prompt tokens and {count} new ones: the context holds {engine.context}; "
                "shorten one of them"
            )
        if engine.sighted is not None and request.images is None:
            engine.sighted.check(request.prompt, 0, "the prompt")
        self.engine, self.request, self.out = engine, request, GenerationOutput()
        self.finish: Finish | None = None
        self.limits = StopCriteria(count, frozenset() if request.ignore_eos else engine.ends)

    def __iter__(self) -> Iterator[str]:
        """Text after every step, "" where none is certain yet."""
        engine, request, out = self.engine, self.request, self.out
        stream, seen = TextStream(engine.decode, request.stops), 0
        for _ in self._steps():
            new = out.tokens[seen:]
            for place, token in enumerate(new):
                if token in self.limits.eos:
                    break
                yield stream.push([token])
                if stream.stopped:
                    del out.tokens[seen + place + 1 :]  # the rest of an accepted block
                    self.finish = "stop"
                    return
            seen = len(out.tokens)
        yield stream.finish()
        self.finish = "stop" if stream.stopped or out.tokens[-1] in self.limits.eos else "length"

    def _steps(self) -> Iterator[None]:
        engine, request = self.engine, self.request
        shape: TreeShape | AdaptivePolicy | None = engine.shape
        if engine.draft is not None and engine.options:
            choice = AdaptivePolicy(engine.draft.rates, request.sampling.greedy, 0, engine.options)
            choice.start()
            shape = None if choice.shape is None else choice
        if engine.draft is None or shape is None:
            sampling, seed = request.sampling, request.seed
            return plain_steps(engine.target, request.prompt, self.limits, sampling, self.out, seed, request.images)
        return speculative_steps(
            engine.target,
            engine.draft,
            request.prompt,
            self.limits,
            request.sampling,
            shape,
            self.out,
            request.seed,
            request.images,
        )

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and new ones."""
        return len(self.request.prompt), len(self.out.tokens)
