"""Bodies of requests to what they ask for: every field checked, unknown and unsupported ones refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dfrot.errors import DfqError
from dfrot.generation.sampling import Sampling
from dfrot.recipe.convert import nearest
from dfrot.serve.errors import bad_request
from dfrot.serve.images import check_count, image_of

Kind = Literal["chat", "completion"]
_ABSENT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False, 0), "top_logprobs": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "min_p": (0, 0.0), "guided_json": (), "audio": (), "prediction": (),
}  # fmt: skip
"""Fields whose only supported values are these (and null)."""
_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
_STOPS = 16
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


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


class _Penalty:
    """OpenAI's penalties: by how often, and whether, a token stands in the text so far (the prompt not counted)."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        counts = scores.new_zeros(scores.shape[-1]).index_add_(
            0, ids[0, self.prompt :], scores.new_ones(ids.shape[1] - self.prompt)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)


class _Bias:
    def __init__(self, bias: Mapping[int, float]) -> None:
        self.bias = bias

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for token, value in self.bias.items():
            scores[0, token] += value
        return scores


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


class _Fields:
    """Fields of a body, taken out one by one with their checks."""

    def __init__(self, left: dict[str, Any]) -> None:
        self.left = left
        self.seen: list[str] = []

    def take(self, name: str, default: Any = ...) -> Any:
        self.seen.append(name)
        if name in self.left:
            return self.left.pop(name)
        if default is ...:
            raise bad_request(f"{name}: is missing", name, "missing_required_parameter")
        return default

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise bad_request(f"{name}: must be text", name)
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise bad_request(f"{name}: must be true or false", name)
        return value

    def number(self, name: str, default: Any, least: float, most: float, whole: bool = False) -> Any:
        value = self.take(name, default)
        if value is None:
            return None
        if not _number(value) or (whole and not isinstance(value, int)):
            raise bad_request(f"{name}: must be a {'whole ' if whole else ''}number", name)
        if not least <= value <= most:
            raise bad_request(f"{name}: {value} is outside {least}..{most}", name)
        return value if whole else float(value)


def _number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


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


def _messages(value: Any, images: list[bytes]) -> list[dict[str, Any]]:
    """Role and content of every message; the images of its parts are put into `images`."""
    if not isinstance(value, list) or not value:
        raise bad_request("messages: must be a list of at least one message", "messages")
    found = [_message(one, f"messages[{place}]", images) for place, one in enumerate(value)]
    check_count(len(images))
    return found


def _message(value: Any, where: str, images: list[bytes]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{where}: must be an object with role and content", "messages")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role: {role!r} is not one of {', '.join(_ROLES)}", "messages")
    if extra := {key for key, item in value.items() if item is not None} - {"role", "content", "name"}:
        raise bad_request(f"{where}.{sorted(extra)[0]}: is not supported", "messages", "unsupported_parameter")
    return {"role": _ROLES[role], "content": _content(value.get("content"), where, role == "user", images)}


def _content(value: Any, where: str, sees: bool, images: list[bytes]) -> str | list[dict[str, str]]:
    """Text, or parts where some of them are images."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_request(f"{where}.content: must be text", "messages")
    parts = [_part(part, f"{where}.content[{place}]", sees, images) for place, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str, sees: bool, images: list[bytes]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url" and sees:
        images.append(image_of(part, where))
        return {"type": "image"}
    if kind != "text" or not isinstance(part.get("text"), str):
        taken = "only text and image_url are" if sees else "only text is"
        raise bad_request(f"{where}: {kind or 'this'} is not supported, {taken}", "messages", "unsupported_content")
    return {"type": "text", "text": part["text"]}
