"""Text from a checkpoint, piece by piece: what `dfq generate` prints and `dfq serve` sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfrot.data.conversation_rows import MAX_IMAGES
from dfrot.data.fast_tokenizer import open_tokenizer
from dfrot.data.images import read_image
from dfrot.data.tokenizer import TokenBytes
from dfrot.data.unicode_text import check_unicode
from dfrot.errors import InputError, reason_of
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import CONTEXT_LENGTH_EXCEEDED, GenerationOutput, StopCriteria
from dfrot.generation.plain import plain_steps
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.drafter import Drafter
from dfrot.generation.speculation.loop import speculative_steps
from dfrot.generation.speculation.policies import Policy, described, policy_of, start_behind
from dfrot.generation.speculation.shape_search import MeasuredShape
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.generation.text_stream import TextStream
from dfrot.generation.token_logprobs import LogprobRecorder
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.prompts import find_prompt_reader

Finish = Literal["stop", "length"]
_PROBE_LENGTH = 32  # tokens of the prompt behind which latencies are measured
_PROBE_BUDGET = 64  # measuring takes at most as long as this many plain steps, when the engine starts


@dataclass(frozen=True)
class TextRequest:
    """One text to generate."""

    prompt: tuple[int, ...]
    """Token ids."""
    max_new_tokens: int | None = None
    """None: up to the end of the context."""
    stops: tuple[str, ...] = ()
    """Strings that end the text and are cut off."""
    sampling: Sampling = Sampling()
    """How tokens are picked."""
    seed: int = 0
    """Of sampling."""
    ignore_eos: bool = False
    """Continue behind the end-of-text token."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the text and are not part of it, also where `ignore_eos` is set."""
    logprobs: int | None = None
    """Record log-probabilities, with this many of the likeliest tokens; decoding is plain then."""
    images: ImageInputs | None = None
    """The prompt's images, from `Engine.encode_multimodal`, which returned the prompt too."""
    drafted: bool = True
    """Use the engine's draft where it pays. Which samples a seed gives depends on it."""


class Engine:
    """A loaded checkpoint with its tokenizer and, if given, a draft. Generations may take turns in one thread."""

    def __init__(
        self,
        model: Path,
        drafter: Drafter | NgramSettings | None = None,
        shape: tuple[int, int, int] | None = None,
        target: Target | None = None,
    ) -> None:
        """Load what is not given.

        Args:
            model: the checkpoint folder.
            drafter: a loaded draft of this target, or settings of look-up drafting; None decodes plainly.
            shape: (depth, top-k, total) of draft trees; look-up drafting takes chains. None measures here which shape
                suits this machine, plain decoding among them; the policy of every text corrects that.
            target: the checkpoint, if it is loaded already (with the drafter's aux_layers).

        Raises DfqError for a checkpoint that cannot be loaded."""
        self.drafter, self.folder = drafter, model
        if target is None:
            aux_layers = () if drafter is None or isinstance(drafter, NgramSettings) else drafter.aux_layers
            target = load_target(model, aux_layers, drafted=drafter is not None)
        self.target = target
        self.prompt_reader = find_prompt_reader(model)
        self.tokenizer = open_tokenizer(model) if self.prompt_reader is None else self.prompt_reader.tokenizer
        self.end_tokens = end_token_ids(self.target)
        self.shape: TreeShape | None = None
        self.options: list[MeasuredShape] = []  # measured shapes, where none was given
        self.measuring_seconds = 0.0  # that measuring shapes took
        self.how = "plain, no draft given"
        if drafter is not None:
            self.shape = None if shape is None else TreeShape(*shape)
            self.how = self._measure(drafter) if self.shape is None else described(drafter, self.shape)

    def _measure(self, drafter: Drafter | NgramSettings) -> str:
        """Measure shapes for all texts to come. Returns what is chosen for greedy ones."""
        policy = policy_of(drafter, True, _PROBE_BUDGET)
        if policy.needs_latencies:
            prompt = (torch.arange(_PROBE_LENGTH) % (self.target.vocab_size - 1)).tolist()
            start_behind(policy, self.target, drafter, prompt)
            self.options, self.measuring_seconds = policy.options, policy.seconds
        return policy.why()

    @property
    def context(self) -> int:
        """Positions of prompt and text together."""
        return self.target.max_length

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text to continue, with the tokenizer's BOS. Raises InputError for what is no Unicode text."""
        return tuple(self.tokenizer(check_unicode(text, "the prompt"), verbose=False)["input_ids"])

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's turn.

        Args:
            messages: role and content each, and what else the template reads.
            tools: functions that the model may call, as OpenAI's interface describes them.
            options: variables of the template, by name.

        Raises InputError without a chat template, for what is no Unicode text, and where the template refuses the
        messages or takes no tools."""
        if not self.has_chat_template:
            raise InputError("this model has no chat template: continue a text instead (a prompt, /v1/completions)")
        text = self._rendered(messages, tools, options or {})
        if tools and text == self._rendered(messages, (), options or {}):
            raise InputError("`tools`: the model's chat template takes none; leave them out", field="tools")
        check_unicode(text, "messages")
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> str:
        call: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True, **call, **options
                )
            )
        except Exception as error:  # templates raise whatever their authors chose
            reason = reason_of(error)
            raise InputError(f"messages: refused by the model's chat template ({reason})") from None

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of the tokenizer's tokens."""
        return TokenBytes(self.tokenizer)

    @property
    def takes_images(self) -> bool:
        """Whether prompts may hold images."""
        return self.prompt_reader is not None

    def encode_multimodal(
        self, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Tensor]
    ) -> tuple[tuple[int, ...], ImageInputs]:
        """Token ids and image tensors of a conversation with images, ready for the assistant's turn.

        messages: contents are texts or lists of parts ({"type": "text", "text": ...}, {"type": "image"}). pictures:
        uint8 [H, W, 3] each, in the order of the image parts. Raises InputError where the model takes no images, and
        for too many of them."""
        if self.prompt_reader is None:
            raise InputError("this model takes no images; leave them out, or use a VLM")
        if not self.has_chat_template:
            raise InputError(
                "this model has no chat template, which places images in the prompt; add one to its folder"
            )
        if len(pictures) > MAX_IMAGES:
            raise InputError(f"{len(pictures)} images; {MAX_IMAGES} at most", limit=MAX_IMAGES)
        for message in messages:
            content = message["content"]
            for part in [content] if isinstance(content, str) else [part.get("text", "") for part in content]:
                check_unicode(part, "messages")
        ids, tensors = self.prompt_reader.encode([dict(message) for message in messages], pictures, "messages")
        return tuple(ids), ImageInputs(tensors)

    def encode_question(
        self, text: str, images: Sequence[Path], system: str | None = None
    ) -> tuple[tuple[int, ...], ImageInputs]:
        """`encode_multimodal` of image files and a text behind them. system: the system message, if any."""
        pictures = [read_image(file) for file in images]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        system_messages = [{"role": "system", "content": system}] if system else []
        return self.encode_multimodal([*system_messages, {"role": "user", "content": content}], pictures)

    def start(self, request: TextRequest) -> Generation:
        """A generation that has not begun. Raises InputError for a prompt that does not fit."""
        return Generation(self, request)


class Generation:
    """One text while it is generated: iterate over its pieces. `out` and `finish` are complete at the end."""

    def __init__(self, engine: Engine, request: TextRequest) -> None:
        """Raises InputError for a prompt that does not fit."""
        room = engine.context - len(request.prompt)
        count = room if request.max_new_tokens is None else request.max_new_tokens
        for stop in request.stops:
            check_unicode(stop, f"stop string {stop!r}")
        if not request.prompt:
            raise InputError("the prompt holds no token; give some text")
        if min(request.prompt) < 0 or max(request.prompt) >= engine.target.vocab_size:
            raise InputError(f"the prompt holds a token id outside 0..{engine.target.vocab_size - 1}")
        if count < 1 or count > room:
            raise InputError(
                f"{len(request.prompt)} prompt tokens and {count} new ones: the context holds {engine.context}; "
                "shorten one of them",
                limit=engine.context,
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        if any(not 0 <= token < engine.target.vocab_size for token in request.stop_tokens):
            raise InputError(f"a stop token lies outside 0..{engine.target.vocab_size - 1}")
        if engine.prompt_reader is not None and request.images is None:
            engine.prompt_reader.check(request.prompt, 0, "the prompt")
        self.engine, self.request, self.out = engine, request, GenerationOutput()
        self.finish: Finish | None = None
        self.policy: Policy | None = None  # what chose the shapes, where the engine was given none
        ends = frozenset(request.stop_tokens) | (frozenset() if request.ignore_eos else engine.end_tokens)
        self.stop = StopCriteria(count, ends)
        self.logprobs = None if request.logprobs is None else LogprobRecorder(request.logprobs)
        self._stream: TextStream | None = None  # of `accept`, with the generator of its samples
        self._random: torch.Generator | None = None

    @property
    def shares_steps(self) -> bool:
        """Whether the logits may come from somewhere else, through `accept`: a prompt without images, decoded
        plainly."""
        return self.request.images is None and self._draft_shape() is None

    @torch.inference_mode()
    def accept(self, logits: Tensor) -> str:
        """Pick the next token by logits float32 [V] that were computed outside: behind the prompt first, then behind
        the last of `out.tokens`. Returns the text that is certain since the last one; `finish` is set at the end. Takes
        the place of iterating."""
        request, out = self.request, self.out
        if self._stream is None or self._random is None:
            self._stream = TextStream(self.engine.decode, request.stops)
            self._random = torch.Generator().manual_seed(request.seed)
        prefix = [*request.prompt, *out.tokens] if request.sampling.needs_prefix else ()
        token = request.sampling.pick(logits, prefix, self._random)
        out.tokens.append(token)
        if self.logprobs is not None:
            self.logprobs(logits, token)
        is_end = token in self.stop.eos
        text = "" if is_end else self._stream.push([token])
        if not self._stream.stopped and self.stop.ends(out.tokens):
            text += self._stream.finish()
            self.finish = "stop" if self._stream.stopped or is_end else "length"
        elif self._stream.stopped:
            self.finish = "stop"
        return text

    def __iter__(self) -> Iterator[str]:
        """Text after every step, "" where none is certain yet."""
        engine, request, out = self.engine, self.request, self.out
        stream, decoded = TextStream(engine.decode, request.stops), 0
        for _ in self._steps():
            for index, token in enumerate(out.tokens[decoded:], decoded):
                if token in self.stop.eos:
                    break
                yield stream.push([token])
                if stream.stopped:
                    del out.tokens[index + 1 :]  # the remaining tokens of the round
                    self.finish = "stop"
                    return
            decoded = len(out.tokens)
        yield stream.finish()
        self.finish = "stop" if stream.stopped or out.tokens[-1] in self.stop.eos else "length"

    def _draft_shape(self) -> TreeShape | Policy | None:
        """How the draft is used, None for plain decoding. Chosen at the first call."""
        engine, request = self.engine, self.request
        if engine.drafter is None or self.logprobs is not None or not request.drafted:
            return None
        if not engine.options:
            return engine.shape
        if self.policy is None:
            self.policy = policy_of(engine.drafter, request.sampling.greedy, 0, engine.options)
            self.policy.start()
            self.policy.seconds = engine.measuring_seconds
        return None if self.policy.shape is None else self.policy

    def _steps(self) -> Iterator[None]:
        target, drafter, request, shape = self.engine.target, self.engine.drafter, self.request, self._draft_shape()
        prompt, sampling, seed, images = request.prompt, request.sampling, request.seed, request.images
        if drafter is not None and shape is not None:
            return speculative_steps(target, drafter, prompt, self.stop, sampling, shape, self.out, seed, images)
        if self.logprobs is not None:
            return plain_steps(target, prompt, self.stop, sampling, self.out, seed, images, self.logprobs)
        return plain_steps(target, prompt, self.stop, sampling, self.out, seed, images)

    @property
    def how(self) -> str:
        """How the text was decoded: plainly or with which shapes and why, with the acceptance length where there were
        speculative rounds."""
        how = self.engine.how if self.policy is None else self.policy.why()
        return f"{how}, tau {self.out.tau:.2f}" if self.out.accepted else how

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and new tokens."""
        return len(self.request.prompt), len(self.out.tokens)
