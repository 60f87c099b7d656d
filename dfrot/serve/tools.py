"""Tools: definitions and choices in a request, calls in messages, and calls in the text that a model writes."""

from __future__ import annotations

import json
import secrets
from typing import Any

from dfrot.serve.errors import bad_request

MAX_TOOLS = 128
OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""Around a call as Hermes and Qwen write it: JSON with name and arguments."""


def calls_in_tags(tokenizer: Any) -> bool:
    """Whether the chat template has the model write its calls between OPEN and CLOSE."""
    templates = str(getattr(tokenizer, "chat_template", None) or "")
    return all(mark in templates for mark in (OPEN, CLOSE, "arguments"))


def parse_tools(tools: Any, choice: Any) -> tuple[dict[str, Any], ...]:
    """The tools that the template gets; none where the choice is "none". Raises ApiError."""
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise bad_request(f"tools: must be a list of at most {MAX_TOOLS} functions", "tools")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise bad_request(f'tools[{number}]: must be {{"type": "function", "function": {{"name": ...}}}}', "tools")
        if not isinstance(function.get("parameters", {}), dict):
            raise bad_request(f"tools[{number}].function.parameters: must be a JSON schema", "tools")
    if choice == "required" or isinstance(choice, dict):
        raise bad_request(
            "tool_choice: only auto and none are supported: this server does not constrain what the model writes",
            "tool_choice",
            "unsupported_parameter",
        )
    if choice not in ("auto", "none"):
        raise bad_request("tool_choice: must be auto or none", "tool_choice")
    return () if choice == "none" else tuple(tools)


def parse_message_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls in an assistant's message, their arguments as objects: templates write them as JSON. where: the
    message. Raises ApiError."""
    if not isinstance(value, list) or not value:
        raise bad_request(f"{where}.tool_calls: must be a list of calls", "messages")
    calls = []
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(f'{where}.tool_calls: a call needs "function" with name and arguments', "messages")
        try:
            arguments = function.get("arguments", "{}")
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise bad_request(f"{where}.tool_calls: arguments must be a JSON object, as text", "messages")
        calls.append({**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


class ToolCallReader:
    """Separates the calls from the text that a model writes. Text from the first `<tool_call>` on is held back until
    the end; what then is no call becomes text again."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to be none of a call."""
        self._held += text
        begin = self._held.find(OPEN)
        if begin < 0:  # the end may be the beginning of a tag
            begin = len(self._held) - next(n for n in range(len(OPEN), -1, -1) if self._held.endswith(OPEN[:n]))
        text, self._held = self._held[:begin], self._held[begin:]
        return text

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The remaining text, and the calls as OpenAI's interface has them."""
        text, calls, rest = "", list[dict[str, Any]](), self._held
        while (begin := rest.find(OPEN)) >= 0:
            end = rest.find(CLOSE, begin)
            body = rest[begin + len(OPEN) : end if end >= 0 else len(rest)]
            behind = end + len(CLOSE) if end >= 0 else len(rest)
            call = _parse_call(body)
            if call is None:
                text += rest[:behind]
            else:
                text += rest[:begin]
                calls.append(call)
            rest = rest[behind:]
        text += rest
        return ("" if calls and not text.strip() else text), calls


def _parse_call(body: str) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, (dict, str)):
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    identity = f"call_{secrets.token_hex(12)}"
    return {"id": identity, "type": "function", "function": {"name": value["name"], "arguments": text}}
