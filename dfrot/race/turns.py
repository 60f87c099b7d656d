"""What is measured, in which order, and a file that keeps it, so that an interrupted race goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import MismatchError
from dfrot.race.settings import RaceSettings

LONG = 1024  # tokens; prompts above are measured less often


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt, and how many tokens are decoded behind it."""

    prompt: int
    """Tokens."""
    decode: int
    """Tokens behind the first one; 0: only the time to the first token counts."""


def timed_prompts(settings: RaceSettings, context: int) -> tuple[list[TimedPrompt], list[str]]:
    """The prompts that fit a context of so many tokens, shortest first, and notes on those that do not."""
    lengths = sorted({*settings.prompts, *settings.cached})
    fitting = [TimedPrompt(length, settings.decode if length in settings.cached else 0) for length in lengths]
    fitting = [timed for timed in fitting if timed.prompt + timed.decode + 1 <= context]
    kept = {timed.prompt for timed in fitting}
    return fitting, [f"prompts of {n} tokens exceed the context of {context}" for n in lengths if n not in kept]


def turns(fitting: Sequence[TimedPrompt], settings: RaceSettings) -> Iterator[tuple[int, TimedPrompt]]:
    """(turn, prompt) in the order in which contenders take them. Turn -1 warms up."""
    if fitting:
        yield -1, fitting[0]
    for turn in range(settings.repeats):
        for timed in fitting:
            if timed.prompt <= LONG or turn < settings.long_repeats:
                yield turn, timed


class Samples:
    """Seconds of every measurement, by (source, contender, prompt, turn): to the first token, and of decoding. Beside
    them `facts` of a contender that do not change with the turn, by (source, contender)."""

    def __init__(self, file: Path | None = None, request: str = "", resume: bool | None = None) -> None:
        """file: keeps them; None keeps them in memory. request: what the race was asked for, as a digest. resume: as
        of stages. Raises MismatchError where the file holds another race's samples, or none and `resume` insists."""
        self.values: dict[tuple[str, str, int, int], tuple[float, float]] = {}
        self.facts: dict[tuple[str, str], dict[str, Any]] = {}
        self._file = file
        if file is None:
            return
        if file.is_file() and resume is not False:
            self._read(file, request)
            return
        if resume:
            raise MismatchError(f"{file}: holds nothing to `resume`", field="resume", file=file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"request": request}) + "\n", encoding="utf-8")

    def _read(self, file: Path, request: str) -> None:
        whole = file.read_bytes().rpartition(b"\n")[0].decode("utf-8", "replace").splitlines()
        try:
            header, *rows = [json.loads(line) for line in whole]
            if header["request"] != request:
                raise MismatchError(
                    f"{file}: holds samples of another race; choose another `out`, or `resume=False`",
                    field=("out", "resume"),
                    file=file,
                )
            for row in rows:
                if len(row) == 3:
                    self.facts[row[0], row[1]] = dict(row[2])
                else:
                    source, contender, prompt, turn, first, decode = row
                    self.values[source, contender, int(prompt), int(turn)] = (float(first), float(decode))
        except (ValueError, TypeError, KeyError):
            raise MismatchError(f"{file}: is no file of samples; start over with `resume=False`", file=file) from None
        file.write_text("".join(line + "\n" for line in whole), encoding="utf-8")  # without half a line

    def add(self, key: tuple[str, str, int, int], first: float, decode: float) -> None:
        """Keep one measurement."""
        self.values[key] = (first, decode)
        self._append([*key, first, decode])

    def keep(self, source: str, contender: str, facts: dict[str, Any]) -> None:
        """Keep the facts of a contender, in place of earlier ones."""
        self.facts[source, contender] = facts
        self._append([source, contender, facts])

    def _append(self, row: list[Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")

    def missing(self, source: str, contender: str, schedule: Sequence[tuple[int, TimedPrompt]]) -> bool:
        """Whether anything of a contender is still to be measured."""
        keys = [(source, contender, timed.prompt, turn) for turn, timed in schedule if turn >= 0]
        return (source, contender) not in self.facts or any(key not in self.values for key in keys)

    def of(self, source: str, contender: str, prompt: int) -> list[tuple[float, float]]:
        """The counted measurements of a prompt."""
        return [value for key, value in self.values.items() if key[:3] == (source, contender, prompt) and key[3] >= 0]
