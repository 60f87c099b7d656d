"""The bodies of responses as OpenAI's clients read them: complete, or in chunks (server-sent events)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from dfrot.serve.api import ApiRequest
from dfrot.serve.job import Job
from dfrot.serve.logprobs import LogprobBodies
from dfrot.serve.tools import ToolCallReader, calls_in_tags

DONE = b"data: [DONE]\n\n"
_NAMES = {"chat": ("chatcmpl", "chat.completion"), "completion": ("cmpl", "text_completion")}


class ResponseBodies:
    """The bodies of a request's response: one job per choice."""

    def __init__(self, call: ApiRequest, jobs: Sequence[Job], run_id: str) -> None:
        """run_id: part of the response's id, different in every run of the server."""
        self.call, self.jobs = call, jobs
        prefix, self.kind = _NAMES[call.kind]
        self.base = {"id": f"{prefix}-{run_id}{jobs[0].number}", "created": int(time.time()), "model": call.model}
        self._logprobs = [LogprobBodies(job.generation, call.kind) for job in jobs]
        reads_calls = bool(call.tools) and calls_in_tags(jobs[0].generation.engine.tokenizer)
        self._calls = [ToolCallReader() if reads_calls else None for _ in jobs]

    def usage(self) -> dict[str, int]:
        """Token counts so far; the prompt counts once."""
        prompt = self.jobs[0].generation.usage[0]
        new = sum(job.generation.usage[1] for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def complete(self, results: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The body of a response that is not streamed. results: text and finish reason of every choice."""
        choices = [self._choice(index, *result) for index, result in enumerate(results)]
        return {**self.base, "object": self.kind, "choices": choices, "usage": self.usage()}

    def _choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        logprobs = self._logprobs[index].take(text, last=True)
        if self.call.kind == "completion":
            return {"index": index, "finish_reason": finish, "logprobs": logprobs, "text": text}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if (reader := self._calls[index]) is not None:
            before = reader.push(text)
            rest, calls = reader.finish()
            if calls:
                message |= {"content": before + rest or None, "tool_calls": calls}
                finish = "tool_calls" if finish == "stop" else finish
        return {"index": index, "finish_reason": finish, "logprobs": logprobs, "message": message}

    def first(self) -> bytes:
        """The events before the text of a chat; empty for a completion."""
        if self.call.kind == "completion":
            return b""
        start = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, start, None) for index in range(len(self.jobs)))

    def piece(self, index: int, text: str) -> bytes:
        """The event of a piece of a choice's text; empty while it may belong to a call of a tool."""
        logprobs = self._logprobs[index].take(text)
        if (reader := self._calls[index]) is not None:
            text = reader.push(text)
            if not text and not logprobs:
                return b""
        return self._chunk(index, {"content": text} if self.call.kind == "chat" else text, None, logprobs)

    def last(self, index: int, finish: str) -> bytes:
        """The events behind a choice's text. finish: the finish reason."""
        logprobs, events = self._logprobs[index].take("", last=True), b""
        if (reader := self._calls[index]) is not None:
            rest, calls = reader.finish()
            events += self._chunk(index, {"content": rest}, None) if rest else b""
            if calls:
                numbered = [{"index": number, **call} for number, call in enumerate(calls)]
                events += self._chunk(index, {"tool_calls": numbered}, None)
                finish = "tool_calls" if finish == "stop" else finish
        return events + self._chunk(index, {} if self.call.kind == "chat" else "", finish, logprobs)

    def end(self) -> bytes:
        """The events behind all choices."""
        usage = {**self.base, "object": self._object, "choices": [], "usage": self.usage()}
        return (server_sent_event(usage) if self.call.include_usage else b"") + DONE

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self.call.kind == "chat" else self.kind

    def _chunk(self, index: int, content: Any, finish: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        name = "delta" if self.call.kind == "chat" else "text"
        choice = {"index": index, name: content, "finish_reason": finish, "logprobs": logprobs}
        body = {**self.base, "object": self._object, "choices": [choice]}
        return server_sent_event({**body, "usage": None} if self.call.include_usage else body)


def server_sent_event(body: dict[str, Any]) -> bytes:
    """JSON as one server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
