"""What a job says, as the bodies that OpenAI's clients read: whole, or chunk by chunk (server-sent events)."""

from __future__ import annotations

import json
import time
from typing import Any

from dfrot.serve.api import ApiRequest
from dfrot.serve.scheduler import Job

DONE = b"data: [DONE]\n\n"
_NAMES = {"chat": ("chatcmpl", "chat.completion"), "completion": ("cmpl", "text_completion")}


class ResponseBodies:
    """The bodies of one job. mark: makes ids of this server's runs differ."""

    def __init__(self, call: ApiRequest, job: Job, mark: str) -> None:
        self.call, self.job = call, job
        prefix, self.kind = _NAMES[call.kind]
        self.base = {"id": f"{prefix}-{mark}{job.number}", "created": int(time.time()), "model": call.model}

    def usage(self) -> dict[str, int]:
        prompt, new = self.job.generation.usage
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self, text: str, finish: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.call.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self.base, "object": self.kind, "choices": [choice], "usage": self.usage()}

    def first(self) -> bytes:
        """What comes before the text of a chat."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.call.kind == "chat" else b""

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text} if self.call.kind == "chat" else text, None)

    def last(self, finish: str) -> bytes:
        """What comes behind the text."""
        end = self._chunk({} if self.call.kind == "chat" else "", finish)
        if self.call.include_usage:
            end += event({**self.base, "object": self._object, "choices": [], "usage": self.usage()})
        return end + DONE

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self.call.kind == "chat" else self.kind

    def _chunk(self, content: Any, finish: str | None) -> bytes:
        name = "delta" if self.call.kind == "chat" else "text"
        choice = {"index": 0, name: content, "finish_reason": finish, "logprobs": None}
        body = {**self.base, "object": self._object, "choices": [choice]}
        return event({**body, "usage": None} if self.call.include_usage else body)


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
