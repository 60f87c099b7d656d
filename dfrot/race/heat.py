"""One race: all contenders of a 16-bit folder are loaded, checked, and take their turns."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfrot.progress import Progress
from dfrot.race.driver_process import ContenderError, DriverProcess
from dfrot.race.field import Contender
from dfrot.race.lane import Lane
from dfrot.race.results import REFERENCES, rank, result
from dfrot.race.settings import RaceSettings
from dfrot.race.turns import Samples, TimedPrompt, turns

WARM_UP_DECODE = 4  # tokens
TEXT = 32  # greedy tokens that the 16-bit model judges
TEXT_PROMPT = 128  # tokens before them, at most


@dataclass(frozen=True)
class Tokens:
    """What every contender reads: the same ids."""

    windows: list[list[int]]
    """For the perplexities."""
    prompt: list[int]
    """Its beginnings are the prompts."""


class Heat:
    """Runs the race of one 16-bit folder. Whoever fails leaves it, with the reason in `failed`."""

    def __init__(
        self,
        source: str,
        contenders: Sequence[Contender],
        cases: Sequence[TimedPrompt],
        tokens: Tokens,
        settings: RaceSettings,
        samples: Samples,
        threads: int,
        progress: Progress,
    ) -> None:
        self.source, self.cases, self.tokens = source, cases, tokens
        self.settings, self.samples, self.threads, self.progress = settings, samples, threads, progress
        self.contenders = list(contenders)
        self.lanes: list[Lane] = []
        self.failed: dict[str, str] = {}

    def run(self) -> list[dict[str, Any]]:
        """Load, check, take turns; the results in the order of the contenders."""
        for number, contender in enumerate(self.contenders):
            self.progress(f"load {contender.name}", number, len(self.contenders))
            self._open(contender)
        for number, lane in enumerate(list(self.lanes)):
            self.progress(f"perplexity of {lane.contender.name}", number, len(self.lanes))
            self._attempt(lane, self._check)
        self._judge_texts()
        self._take_turns()
        for lane in list(self.lanes):
            self._attempt(lane, self._measure_memory)
        results = [result(lane, self.cases, self.samples, self.source) for lane in self.lanes]
        rank(results, self.settings.max_ratio)
        return results

    def close(self) -> None:
        """End every process."""
        for lane in self.lanes:
            lane.process.close()

    def _open(self, contender: Contender) -> None:
        try:
            process = DriverProcess(contender.name, contender.command)
        except ContenderError as error:
            self.failed[contender.name] = str(error)
            return
        lane = Lane(contender, process)
        self.lanes.append(lane)
        self._attempt(lane, self._load)

    def _attempt(self, lane: Lane, action: Any, *arguments: Any) -> None:
        """Run `action(lane, ..)`, then freeze the process; a contender that fails leaves the race."""
        try:
            action(lane, *arguments)
            lane.process.pause()
        except ContenderError as error:
            self.failed[lane.contender.name] = str(error).removeprefix(f"{lane.contender.name}: ")
            self.lanes.remove(lane)
            lane.process.close()

    def _ask(self, lane: Lane, op: str, **request: Any) -> dict[str, Any]:
        return lane.process.ask({"op": op, **request}, self.settings.timeout)

    def _load(self, lane: Lane) -> None:
        context = max(case.prompt + case.decode + 1 for case in self.cases)
        context = max(context, self.settings.seqlen, TEXT_PROMPT + TEXT + 1) + 8
        context = -(-context // 256) * 256
        path = str(lane.contender.path.absolute())
        lane.load = self._ask(lane, "load", path=path, threads=self.threads, context=context)
        number(lane.load, "seconds", lane)

    def _check(self, lane: Lane) -> None:
        """Perplexity, and the greedy text that the 16-bit model will judge."""
        for window in self.tokens.windows:
            lane.losses.append(number(self._ask(lane, "loss", ids=window), "loss", lane))
        prompt = self.tokens.prompt[:TEXT_PROMPT]
        lane.text = generated(self._ask(lane, "generate", ids=prompt, count=TEXT - 1), TEXT, lane)

    def _judge_texts(self) -> None:
        """The loss of every contender's greedy text in 16 bits: decoding may be wrong where perplexity is right."""
        judge = next((lane for name in REFERENCES for lane in self.lanes if lane.contender.name == name), None)
        if judge is None:
            return
        prompt = self.tokens.prompt[:TEXT_PROMPT]

        def read(reader: Lane, lane: Lane) -> None:
            answer = self._ask(reader, "loss", ids=[*prompt, *lane.text], first=len(prompt))
            lane.text_loss = number(answer, "loss", reader)

        for lane in list(self.lanes):
            if judge in self.lanes:
                self._attempt(judge, read, lane)

    def _take_turns(self) -> None:
        schedule = list(turns(self.cases, self.settings))
        for position, (turn, case) in enumerate(schedule):
            for lane in list(self.lanes):
                key = (self.source, lane.contender.name, case.prompt, turn)
                if turn < 0 or key not in self.samples.values:
                    self.progress(f"{lane.contender.name}, {case.prompt} tokens", position, len(schedule))
                    self._attempt(lane, self._sample, case, key)

    def _sample(self, lane: Lane, case: TimedPrompt, key: tuple[str, str, int, int]) -> None:
        count = case.decode if key[-1] >= 0 else WARM_UP_DECODE
        answer = self._ask(lane, "generate", ids=self.tokens.prompt[: case.prompt], count=count)
        generated(answer, 1 + count, lane)
        if key[-1] >= 0:
            self.samples.add(key, number(answer, "first", lane), number(answer, "decode", lane))

    def _measure_memory(self, lane: Lane) -> None:
        answer = self._ask(lane, "memory")
        with contextlib.suppress(TypeError, ValueError):
            lane.memory = {name: int(value) for name, value in answer.items()}


def number(answer: dict[str, Any], key: str, lane: Lane) -> float:
    """A finite number of an answer. Raises ContenderError for anything else."""
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e30 < value < 1e30:
        raise ContenderError(f"{lane.contender.name}: answered {key} = {value!r}, which is no number")
    return float(value)


def generated(answer: dict[str, Any], count: int, lane: Lane) -> list[int]:
    """The `count` token ids of an answer. Raises ContenderError for anything else."""
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or len(tokens) != count or not all(type(token) is int for token in tokens):
        amount = len(tokens) if isinstance(tokens, list) else "no"
        raise ContenderError(f"{lane.contender.name}: generated {amount} tokens instead of {count}")
    return tokens
