"""Settings of `dfq eval ppl|kl|speed|tasks`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.evaluate.settings import LEVEL


@dataclass(frozen=True)
class PerplexitySettings:
    """dataset: wikitext2, stdlib or a path; windows: how many (None: all); batch: windows per forward;
    dtype: None takes each folder's own; fake: packed checkpoints run as their simulated twins; kl: KL divergence
    and top-1 agreement against the first checkpoint; decode: tokens of a greedy speed measurement (0: none);
    threads: 0 leaves torch's setting."""

    dataset: str = "wikitext2"
    split: str = "test"
    seqlen: int = 2048
    windows: int | None = None
    batch: int = 4
    dtype: str | None = None
    fake: bool = False
    kl: bool = False
    decode: int = 0
    threads: int = 0
    device: str = "cpu"
    level: float = LEVEL


@dataclass(frozen=True)
class KlSettings:
    """As EvalSettings: windows None takes all; dtype None each folder's own; fake runs packed ones simulated."""

    dataset: str = "wikitext2"
    seqlen: int = 2048
    windows: int | None = None
    batch: int = 4
    dtype: str | None = None
    fake: bool = False


@dataclass(frozen=True)
class SpeedSettings:
    """prefill: tokens of the prompt that is timed; decode: greedy tokens behind a prompt of 32; repeats: turns behind
    a first one that warms up. memory: peak of each checkpoint in a process of its own. prompts: held-out starts of
    `dataset` that are decoded plainly and with the draft; shapes: of its guesses."""

    prefill: int = 512
    decode: int = 64
    repeats: int = 5
    memory: bool = True
    dataset: str = "stdlib"
    prompts: int = 6
    shapes: tuple[tuple[int, int, int], ...] = ((3, 1, 0),)

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "repeats", "prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")


@dataclass(frozen=True)
class TaskSettings:
    """tasks: names as lm-eval knows them, or of files in `task_path`. limit: documents per task. fewshot None: as the
    task says. chat: put prompts into the chat template. task_code: allow task files that bring Python functions."""

    tasks: tuple[str, ...]
    task_path: str | None = None
    limit: int | None = None
    fewshot: int | None = None
    batch: int = 8
    chat: bool = False
    seed: int = 0
    task_code: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError("no task: give --task NAME (lm-eval's names, or those of files in --task-path)")
