"""The messages of a chat request, and the images in them."""

from __future__ import annotations

from typing import Any

from dfrot.serve.errors import bad_request
from dfrot.serve.images import check_count, image_of
from dfrot.serve.tools import parse_message_calls

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def parse_messages(value: Any) -> tuple[list[dict[str, Any]], tuple[bytes, ...]]:
    """Role and content of every message, and the encoded images in the order of their parts. Raises ApiError."""
    if not isinstance(value, list) or not value:
        raise bad_request("messages: must be a list of at least one message", "messages")
    images: list[bytes] = []
    messages = [_message(message, f"messages[{index}]", images) for index, message in enumerate(value)]
    check_count(len(images))
    return messages, tuple(images)


def _message(value: Any, where: str, images: list[bytes]) -> dict[str, Any]:
    """One message; its images are appended to `images`."""
    if not isinstance(value, dict):
        raise bad_request(f"{where}: must be an object with role and content", "messages")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role: {role!r} is not one of {', '.join(_ROLES)}", "messages")
    left = {key: item for key, item in value.items() if item is not None and item != []}
    known = {"role", "content", "name"} | {"assistant": {"tool_calls"}, "tool": {"tool_call_id"}}.get(role, set())
    if extra := set(left) - known:
        raise bad_request(f"{where}.{sorted(extra)[0]}: is not supported", "messages", "unsupported_parameter")
    message: dict[str, Any] = {"role": _ROLES[role]}
    if "tool_calls" in left:
        message["tool_calls"] = parse_message_calls(left["tool_calls"], where)
    if role == "tool":
        if not isinstance(left.get("tool_call_id"), str):
            raise bad_request(f"{where}.tool_call_id: must name the call that this answers", "messages")
        message["tool_call_id"] = left["tool_call_id"]
        if "name" in left:  # some templates write it
            message["name"] = left["name"]
    content = "" if "tool_calls" in left and "content" not in left else left.get("content")
    return {**message, "content": _content(content, where, role == "user", images)}


def _content(value: Any, where: str, may_have_images: bool, images: list[bytes]) -> str | list[dict[str, str]]:
    """Text, or parts where some of them are images."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_request(f"{where}.content: must be text", "messages")
    parts = [_part(part, f"{where}.content[{index}]", may_have_images, images) for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str, may_have_images: bool, images: list[bytes]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url" and may_have_images:
        images.append(image_of(part, where))
        return {"type": "image"}
    if kind != "text" or not isinstance(part.get("text"), str):
        supported = "only text and image_url are" if may_have_images else "only text is"
        raise bad_request(f"{where}: {kind or 'this'} is not supported, {supported}", "messages", "unsupported_content")
    return {"type": "text", "text": part["text"]}
