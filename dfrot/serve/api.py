"""Bodies of requests to what they ask for: every field checked, unknown and unsupported ones refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dfrot.errors import DfqError
from dfrot.generation.sampling import Sampling
from dfrot.recipe.convert import nearest
from dfrot.serve.errors import bad_request
from dfrot.serve.fields import _Fields, _number
from dfrot.serve.messages import _messages
from dfrot.serve.processors import _Bias, _Penalty

Kind = Literal["chat", "completion"]
_ABSENT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False, 0), "top_logprobs": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "min_p": (0, 0.0), "guided_json": (), "audio": (), "prediction": (),
}  # fmt: skip
"""Fields whose only supported values are these (and null)."""
_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
_STOPS = 16


@dataclass(frozen=True)
class ApiRequest:
    """What one body asks for. prompt: text, token ids or messages. images: encoded, in the order of their places in the
    messages. max_tokens None: the server's default."""

    kind: Kind
    model: str
    prompt: Any
    images: tuple[bytes, ...]
    max_tokens: int | None
    stops: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool

    def sampling(self, prompt: int, vocabulary: int) -> Sampling:
        """The sampler behind a prompt of that many tokens."""
        processors: list[Callable[[Tensor, Tensor], Tensor]] = []
        if self.frequency_penalty or self.presence_penalty:
            processors.append(_Penalty(prompt, self.frequency_penalty, self.presence_penalty))
        if self.logit_bias:
            if max(self.logit_bias) >= vocabulary:
                raise bad_request(f"logit_bias: token {max(self.logit_bias)} is outside the vocabulary", "logit_bias")
            processors.append(_Bias(self.logit_bias))
        try:
            return Sampling(self.temperature, self.top_p, self.top_k, self.repetition_penalty, tuple(processors))
        except DfqError as error:
            raise bad_request(str(error)) from None


def parse_request(kind: Kind, body: Any) -> ApiRequest:
    """Raises ApiError naming the field."""
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None and key not in _IGNORED}
    for key in [key for key in given if key in _ABSENT]:
        value = given.pop(key)
        if not any(value == one and type(value) is type(one) for one in _ABSENT[key]):
            raise bad_request(f"{key}: is not supported by this server; leave it out", key, "unsupported_parameter")
    fields = _Fields(given)
    images: list[bytes] = []
    prompt = _messages(fields.take("messages"), images) if kind == "chat" else _prompt(fields.take("prompt"))
    short = fields.number("max_tokens", None, 1, 1 << 31, whole=True)
    longer = fields.number("max_completion_tokens", short, 1, 1 << 31, whole=True) if kind == "chat" else short
    stream = fields.flag("stream")
    call = ApiRequest(
        kind=kind,
        model=fields.text("model"),
        prompt=prompt,
        images=tuple(images),
        max_tokens=longer if kind == "chat" or longer is not None else 16,
        stops=_stops(fields.take("stop", [])),
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_p=fields.number("top_p", 1.0, 0, 1),
        top_k=max(0, fields.number("top_k", 0, -1, 1 << 31, whole=True)),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0, 10),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        logit_bias=_bias(fields.take("logit_bias", {})),
        seed=fields.number("seed", None, -(1 << 63), (1 << 63) - 1, whole=True),
        ignore_eos=fields.flag("ignore_eos"),
        stream=stream,
        include_usage=_usage(fields.take("stream_options", {}), stream),
    )
    if fields.left:
        known = [*fields.seen, *_ABSENT, *_IGNORED]
        name = sorted(fields.left)[0]
        hint = nearest(name, known).split(" (known")[0] if "did you mean" in nearest(name, known) else ""
        raise bad_request(f"{name}: unknown field; {hint or 'leave it out'}", name, "unknown_parameter")
    return call


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request("stop: must be text or a list of texts, none of them empty", "stop")
    if len(stops) > _STOPS:
        raise bad_request(f"stop: {len(stops)} strings; {_STOPS} at most", "stop")
    return tuple(stops)


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise bad_request("logit_bias: must be an object of token ids and numbers", "logit_bias")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if not _number(bias) or not -100 <= bias <= 100 or not (key.isdecimal() and len(key) < 10):
            raise bad_request(f"logit_bias: {key!r}: token ids and numbers in -100..100 are needed", "logit_bias")
        found[int(key)] = float(bias)
    return found


def _usage(value: Any, stream: bool) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise bad_request("stream_options: only include_usage is supported", "stream_options")
    wanted = value.get("include_usage", False)
    if not isinstance(wanted, bool) or (value and not stream):
        raise bad_request("stream_options: include_usage is true or false, and needs stream: true", "stream_options")
    return wanted


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        return tuple(value)
    raise bad_request(
        "prompt: must be one text or one list of token ids; send several prompts as several requests", "prompt"
    )
