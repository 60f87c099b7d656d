"""From the body of a request to an ApiRequest: every field checked, unknown and unsupported ones refused by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dfrot.errors import DfqError
from dfrot.generation.sampling import LogitsProcessor, Sampling
from dfrot.generation.token_logprobs import MAX_TOP
from dfrot.serve.errors import api_error, bad_request
from dfrot.serve.fields import Fields, is_number
from dfrot.serve.logits_processors import LogitBias, PresencePenalty
from dfrot.serve.messages import parse_messages
from dfrot.serve.tools import parse_tools

Kind = Literal["chat", "completion"]
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "suffix": ("",), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "min_p": (0, 0.0), "guided_json": (),
    "audio": (), "prediction": (),
}  # fmt: skip
"""Fields that are only accepted with these values (and null), which ask for nothing special."""
_CHAT_ONLY: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "chat_template_kwargs": ({},), "top_logprobs": (0,),
}  # fmt: skip
"""As _UNSUPPORTED, for completions."""
_REASONS = {
    "response_format": "JSON modes are not supported: this server does not constrain what the model writes; ask for "
    "JSON in the prompt, and check it",
    "functions": "is not supported; use tools",
    "function_call": "is not supported; use tools and tool_choice",
}
"""Why a field is refused, where more can be said."""
_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
_MAX_STOPS = 16
_MAX_CHOICES = 8
_TEMPLATE_NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
_NOT_OF_TEMPLATES = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "kwargs", "self"),
}
"""Arguments of transformers' `apply_chat_template` and others that are no variables of a template."""
_MAX_TOKENS = 1 << 31
_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions
_MAX_BIAS = 100
_MAX_ID_DIGITS = 9
_MIN_SIMILARITY = 0.5  # of field names, for "did you mean"


@dataclass(frozen=True)
class ApiRequest:
    """A checked request."""

    kind: Kind
    """Which endpoint it came to."""
    model: str
    """The name of the model."""
    prompt: Any
    """Text or token ids (completion), or messages (chat)."""
    images: tuple[bytes, ...]
    """Encoded images, in the order of their parts in the messages."""
    max_tokens: int | None
    """New tokens; None for the server's limit."""
    stops: tuple[str, ...]
    """Stop strings."""
    temperature: float
    """See `Sampling`."""
    top_p: float
    """See `Sampling`."""
    top_k: int
    """See `Sampling`."""
    repetition_penalty: float
    """See `Sampling`."""
    frequency_penalty: float
    """See `PresencePenalty`."""
    presence_penalty: float
    """See `PresencePenalty`."""
    logit_bias: Mapping[int, float]
    """By token id."""
    seed: int | None
    """Of sampling; None for a random one."""
    ignore_eos: bool
    """Continue behind the end-of-text token."""
    stream: bool
    """Answer in server-sent events."""
    include_usage: bool
    """Send token counts at the end of a stream."""
    choices: int
    """Answers to generate (`n`)."""
    stop_tokens: tuple[int, ...]
    """Token ids that end the text."""
    logprobs: int | None
    """Likeliest tokens per position; None for no log-probabilities."""
    tools: tuple[dict[str, Any], ...]
    """Functions that the model may call."""
    template_options: Mapping[str, Any]
    """Variables of the chat template."""

    def sampling(self, prompt: int, vocabulary: int) -> Sampling:
        """The sampler behind a prompt of `prompt` tokens. Raises ApiError for a bias outside the vocabulary."""
        processors: list[LogitsProcessor] = []
        if self.frequency_penalty or self.presence_penalty:
            processors.append(PresencePenalty(prompt, self.frequency_penalty, self.presence_penalty))
        if self.logit_bias:
            if max(self.logit_bias) >= vocabulary:
                raise bad_request(f"logit_bias: token {max(self.logit_bias)} is outside the vocabulary", "logit_bias")
            processors.append(LogitBias(self.logit_bias))
        try:
            return Sampling(self.temperature, self.top_p, self.top_k, self.repetition_penalty, tuple(processors))
        except DfqError as error:
            raise api_error(error) from None


def parse_request(kind: Kind, body: Any) -> ApiRequest:
    """Check the body of a request. Raises ApiError naming the field."""
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    fields = Fields(_supported(body, kind))
    prompt, images = parse_messages(fields.take("messages")) if kind == "chat" else (_prompt(fields), ())
    stream = fields.flag("stream")
    request = ApiRequest(
        kind=kind,
        model=fields.text("model"),
        prompt=prompt,
        images=images,
        max_tokens=_max_tokens(fields, kind),
        stops=_stops(fields.take("stop", [])),
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_p=fields.number("top_p", 1.0, 0, 1),
        top_k=max(0, fields.number("top_k", 0, -1, 1 << 31, integer=True)),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0, 10),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        logit_bias=_logit_bias(fields.take("logit_bias", {})),
        seed=fields.number("seed", None, -(1 << 63), (1 << 63) - 1, integer=True),
        ignore_eos=fields.flag("ignore_eos"),
        stream=stream,
        include_usage=_include_usage(fields.take("stream_options", {}), stream),
        choices=fields.number("n", 1, 1, _MAX_CHOICES, integer=True),
        stop_tokens=_stop_tokens(fields.take("stop_token_ids", [])),
        logprobs=_logprobs(fields, kind),
        tools=parse_tools(fields.take("tools", []), fields.take("tool_choice", "auto")) if kind == "chat" else (),
        template_options=_template_options(fields.take("chat_template_kwargs", {})) if kind == "chat" else {},
    )
    _refuse_unknown(fields)
    return request


def _supported(body: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The fields of a body without null and ignored ones. Raises ApiError for values that are not supported."""
    fields = {key: value for key, value in body.items() if value is not None and key not in _IGNORED}
    unsupported = _UNSUPPORTED if kind == "chat" else {**_UNSUPPORTED, **_CHAT_ONLY}
    for key in [key for key in fields if key in unsupported]:
        value = fields.pop(key)
        if not any(value == accepted and type(value) is type(accepted) for accepted in unsupported[key]):
            where = "in completions" if key in _CHAT_ONLY else "by this server"
            reason = _REASONS.get(key, f"is not supported {where}; leave it out")
            raise bad_request(f"{key}: {reason}", key, "unsupported_parameter")
    return fields


def _stop_tokens(value: Any) -> tuple[int, ...]:
    valid = isinstance(value, list) and all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in value)
    if not valid or len(value) > _MAX_STOPS:
        raise bad_request(f"stop_token_ids: must be a list of at most {_MAX_STOPS} token ids", "stop_token_ids")
    return tuple(value)


def _logprobs(fields: Fields, kind: Kind) -> int | None:
    """Likeliest tokens per position; None for no log-probabilities."""
    if kind == "completion":
        top: int | None = fields.number("logprobs", None, 0, MAX_TOP, integer=True)
        return top
    wanted = fields.flag("logprobs")
    count: int = fields.number("top_logprobs", 0, 0, MAX_TOP, integer=True)
    if count and not wanted:
        raise bad_request("top_logprobs: needs logprobs: true", "top_logprobs")
    return count if wanted else None


def _template_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request("chat_template_kwargs: must be an object", "chat_template_kwargs")
    for name in value:
        if not _TEMPLATE_NAME.fullmatch(name) or name in _NOT_OF_TEMPLATES:
            raise bad_request(
                f"chat_template_kwargs.{name}: is no variable of a chat template; leave it out", "chat_template_kwargs"
            )
    return value


def _refuse_unknown(fields: Fields) -> None:
    if not fields.left:
        return
    name = sorted(fields.left)[0]
    known = sorted([*fields.known, *_UNSUPPORTED, *_CHAT_ONLY, *_IGNORED])
    similar = difflib.get_close_matches(name, known, 1, _MIN_SIMILARITY)
    hint = f"did you mean {similar[0]}?" if similar else "leave it out"
    raise bad_request(f"{name}: unknown field; {hint}", name, "unknown_parameter")


def _max_tokens(fields: Fields, kind: Kind) -> int | None:
    max_tokens: int | None = fields.number("max_tokens", None, 1, _MAX_TOKENS, integer=True)
    if kind == "completion":
        return _COMPLETION_TOKENS if max_tokens is None else max_tokens
    newer: int | None = fields.number("max_completion_tokens", max_tokens, 1, _MAX_TOKENS, integer=True)
    return newer


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request("stop: must be text or a list of texts, none of them empty", "stop")
    if len(stops) > _MAX_STOPS:
        raise bad_request(f"stop: {len(stops)} strings; {_MAX_STOPS} at most", "stop")
    return tuple(stops)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise bad_request("logit_bias: must be an object of token ids and numbers", "logit_bias")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        valid_bias = is_number(bias) and -_MAX_BIAS <= bias <= _MAX_BIAS
        if not valid_bias or not (key.isdecimal() and len(key) <= _MAX_ID_DIGITS):
            raise bad_request(f"logit_bias: {key!r}: token ids and numbers in -100..100 are needed", "logit_bias")
        biases[int(key)] = float(bias)
    return biases


def _include_usage(value: Any, stream: bool) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise bad_request(
            "stream_options: only include_usage and include_obfuscation (which does nothing here) are supported",
            "stream_options",
        )
    if not all(isinstance(flag, bool) for flag in value.values()) or (value and not stream):
        raise bad_request("stream_options: its fields are true or false, and need stream: true", "stream_options")
    return bool(value.get("include_usage", False))


def _prompt(fields: Fields) -> str | tuple[int, ...]:
    value = fields.take("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in value):
        return tuple(value)
    raise bad_request(
        "prompt: must be one text or one list of token ids; send several prompts as several requests", "prompt"
    )
