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
        prompts: Sequence[TimedPrompt],
        tokens: Tokens,
        settings: RaceSettings,
        samples: Samples,
        threads: int,
        progress: Progress,
    ) -> None:
        self.source, self.prompts, self.tokens = source, prompts, tokens
        self.settings, self.samples, self.threads, self.progress = settings, samples, threads, progress
        self.contenders = list(contenders)
        self.schedule = list(turns(prompts, settings))
        self.lanes: list[Lane] = []
        self.failed: dict[str, str] = {}

    def run(self) -> list[dict[str, Any]]:
        """Load, check, take turns; the results in the order of the contenders."""
        for number, contender in enumerate(self.contenders):
            self.progress(f"load {contender.name}", number, len(self.contenders))
            self._open(contender)
        for number, lane in enumerate(self._running()):
            self.progress(f"perplexity of {lane.contender.name}", number, len(self.lanes))
            if not lane.losses:
                self._attempt(lane, self._check)
        self._judge_texts()
        self._take_turns()
        results = [result(lane, self.prompts, self.samples, self.source) for lane in self.lanes]
        rank(results, self.settings.max_ratio)
        return results

    def close(self) -> None:
        """End every process."""
        for lane in self._running():
            self._end(lane)

    def _running(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.process is not None]

    def _end(self, lane: Lane) -> None:
        if lane.process is not None:
            lane.process.close()
            lane.process = None

    def _open(self, contender: Contender) -> None:
        """Start and load a contender, unless everything of it was measured before the race was cut. The judge of texts
        is needed as long as anybody is."""
        known = self.samples.facts.get((self.source, contender.name), {})
        needed = self.samples.missing(self.source, contender.name, self.schedule)
        judges = contender.name in REFERENCES and any(
            self.samples.missing(self.source, other.name, self.schedule) for other in self.contenders
        )
        try:
            process = DriverProcess(contender.name, contender.command) if needed or judges else None
            lane = Lane(contender, process, **known)
        except (ContenderError, TypeError) as error:
            self.failed[contender.name] = str(error)
            return
        self.lanes.append(lane)
        if process is not None:
            self._attempt(lane, self._load)

    def _attempt(self, lane: Lane, action: Any, *arguments: Any) -> None:
        """Run `action(lane, ..)`, then freeze the process; a contender that fails leaves the race."""
        assert lane.process is not None
        try:
            action(lane, *arguments)
            lane.process.pause()
        except ContenderError as error:
            self.failed[lane.contender.name] = str(error).removeprefix(f"{lane.contender.name}: ")
            self.lanes.remove(lane)
            self._end(lane)

    def _ask(self, lane: Lane, op: str, **request: Any) -> dict[str, Any]:
        assert lane.process is not None
        return lane.process.ask({"op": op, **request}, self.settings.timeout)

    def _load(self, lane: Lane) -> None:
        context = max(timed.prompt + timed.decode + 1 for timed in self.prompts)
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
        judge = next((lane for name in REFERENCES for lane in self._running() if lane.contender.name == name), None)
        prompt = self.tokens.prompt[:TEXT_PROMPT]

        def read(reader: Lane, lane: Lane) -> None:
            answer = self._ask(reader, "loss", ids=[*prompt, *lane.text], first=len(prompt))
            lane.text_loss = number(answer, "loss", reader)

        for lane in self._running():
            if lane.text_loss is None and judge in self.lanes:
                self._attempt(judge, read, lane)
        for lane in self._running():
            self._attempt(lane, self._remember)

    def _take_turns(self) -> None:
        for position, (turn, timed) in enumerate(self.schedule):
            for lane in self._running():
                key = (self.source, lane.contender.name, timed.prompt, turn)
                if turn < 0 or key not in self.samples.values:
                    self.progress(f"{lane.contender.name}, {timed.prompt} tokens", position, len(self.schedule))
                    self._attempt(lane, self._sample, timed, key)
        for lane in self._running():
            self._attempt(lane, self._remember)

    def _sample(self, lane: Lane, timed: TimedPrompt, key: tuple[str, str, int, int]) -> None:
        count = timed.decode if key[-1] >= 0 else WARM_UP_DECODE
        answer = self._ask(lane, "generate", ids=self.tokens.prompt[: timed.prompt], count=count)
        generated(answer, 1 + count, lane)
        if key[-1] >= 0:
            self.samples.add(key, number(answer, "first", lane), number(answer, "decode", lane))

    def _remember(self, lane: Lane) -> None:
        """Measure memory, and keep what is known of the contender."""
        answer = self._ask(lane, "memory")
        with contextlib.suppress(TypeError, ValueError):
            lane.memory = {name: int(value) for name, value in answer.items()}
        self.samples.keep(self.source, lane.contender.name, lane.facts())


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
