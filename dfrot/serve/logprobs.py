"""Log-probabilities of tokens as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

from dfrot.generation.engine import Generation
from dfrot.generation.token_logprobs import TokenLogprob


class LogprobBodies:
    """The log-probabilities of one generation, handed out with the pieces of its text."""

    def __init__(self, generation: Generation, kind: str) -> None:
        """kind: chat or completion."""
        self.generation, self.kind = generation, kind
        self._token_bytes = generation.engine.token_bytes
        self._sent = self._bytes = self._characters = 0  # entries that were handed out, and their length
        self._text = 0  # bytes of the text so far

    def take(self, piece: str, last: bool = False) -> dict[str, Any] | None:
        """The entries of the tokens that belong to a piece of the text; `last`: of all that remain."""
        recorder = self.generation.logprobs
        if recorder is None:
            return None
        self._text += len(piece.encode())
        entries, everything = [], last and not self._ended_by_text()
        for entry in recorder.entries[self._sent : len(self.generation.out.tokens)]:
            if entry.token in self.generation.stop.eos or (self._bytes >= self._text and not everything):
                break  # what ends the text is no part of it, and neither is what a stop string cut off
            entries.append(entry)
            if entry.token not in self._token_bytes.special:  # they are left out of the text
                self._bytes += len(self._token_bytes(entry.token))
        self._sent += len(entries)
        return self._chat(entries) if self.kind == "chat" else self._completion(entries)

    def _ended_by_text(self) -> bool:
        """Whether a stop string ended the text."""
        generation = self.generation
        return generation.finish == "stop" and generation.out.tokens[-1] not in generation.stop.eos

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._token_bytes(token)
        return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}

    def _chat(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        content = [
            {**self._token(entry.token, entry.logprob), "top_logprobs": [self._token(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _completion(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        tokens, offsets = [], []
        for entry in entries:
            tokens.append(self._token(entry.token, entry.logprob)["token"])
            offsets.append(self._characters)
            self._characters += len(tokens[-1])
        tops = [{self._token(*pair)["token"]: pair[1] for pair in reversed(entry.top)} for entry in entries]
        logprobs = [entry.logprob for entry in entries]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
