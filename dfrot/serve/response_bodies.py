"""The bodies of responses as OpenAI's clients read them: complete, or in chunks (server-sent events)."""

from __future__ import annotations

import json
import time
from typing import Any

from dfrot.serve.api import ApiRequest
from dfrot.serve.scheduler import Job

DONE = b"data: [DONE]\n\n"
_NAMES = {"chat": ("chatcmpl", "chat.completion"), "completion": ("cmpl", "text_completion")}


class ResponseBodies:
    """The bodies of one job's response."""

    def __init__(self, call: ApiRequest, job: Job, run_id: str) -> None:
        """run_id: part of the response's id, different in every run of the server."""
        self.call, self.job = call, job
        prefix, self.kind = _NAMES[call.kind]
        self.base = {"id": f"{prefix}-{run_id}{job.number}", "created": int(time.time()), "model": call.model}

    def usage(self) -> dict[str, int]:
        """Token counts so far."""
        prompt, new = self.job.generation.usage
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def complete(self, text: str, finish: str) -> dict[str, Any]:
        """The body of a response that is not streamed. finish: the finish reason."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.call.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self.base, "object": self.kind, "choices": [choice], "usage": self.usage()}

    def first(self) -> bytes:
        """The event before the text of a chat; empty for a completion."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.call.kind == "chat" else b""

    def piece(self, text: str) -> bytes:
        """The event of a piece of text."""
        return self._chunk({"content": text} if self.call.kind == "chat" else text, None)

    def last(self, finish: str) -> bytes:
        """The events behind the text. finish: the finish reason."""
        end = self._chunk({} if self.call.kind == "chat" else "", finish)
        if self.call.include_usage:
            end += server_sent_event({**self.base, "object": self._object, "choices": [], "usage": self.usage()})
        return end + DONE

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self.call.kind == "chat" else self.kind

    def _chunk(self, content: Any, finish: str | None) -> bytes:
        name = "delta" if self.call.kind == "chat" else "text"
        choice = {"index": 0, name: content, "finish_reason": finish, "logprobs": None}
        body = {**self.base, "object": self._object, "choices": [choice]}
        return server_sent_event({**body, "usage": None} if self.call.include_usage else body)


def server_sent_event(body: dict[str, Any]) -> bytes:
    """JSON as one server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
