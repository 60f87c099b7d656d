"""messages"""

from __future__ import annotations

from typing import Any

from dfrot.serve.errors import bad_request
from dfrot.serve.images import check_count, image_of

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


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
