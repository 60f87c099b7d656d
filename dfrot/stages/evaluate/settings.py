"""Settings of `dfq eval ppl|kl|speed|tasks`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.evaluate.settings import LEVEL
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting

DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class PerplexitySettings:
    """How perplexity is measured: the GPTQ protocol on windows of one text."""

    dataset: str = dataset_setting("wikitext2", "Text to evaluate on.")
    split: str = setting("test", choices=("train", "test"), help="Split of the text.")
    seqlen: int = setting(2048, minimum=2, help="Tokens of a window.")
    windows: int | None = setting(None, minimum=1, metavar="N", help="Evaluate the first N windows only.")
    batch: int = setting(4, minimum=1, help="Windows per forward pass.")
    dtype: str | None = setting(
        None,
        choices=("float32", "bfloat16", "float16"),
        help="Data type of the computation. Default: the checkpoint's own.",
    )
    fake: bool = setting(False, help="Run packed checkpoints as simulated quantization in floating point.")
    kl: bool = setting(False, help="Also measure KL divergence from, and top-1 agreement with, the first checkpoint.")
    decode: int = setting(
        0, minimum=0, metavar="N", help="Also measure the speed of greedy decoding over N tokens; 0 leaves it out."
    )
    threads: int = setting(0, minimum=0, maximum=1024, help="CPU threads; 0 leaves the number to torch.")
    device: str = setting("cpu", metavar="DEVICE", help="Device of the computation: cpu, cuda or cuda:N.")
    level: float = setting(LEVEL, above=0, below=1, help="Level of confidence intervals.")

    def __post_init__(self) -> None:
        check(self)
        if not DEVICE.fullmatch(self.device):
            raise InputError(f"`device` {self.device!r}: give cpu, cuda or cuda:N", field="device")


@dataclass(frozen=True)
class KlSettings:
    """How the divergence from a baseline is measured: on the windows of the perplexity protocol."""

    dataset: str = same_as(PerplexitySettings, "dataset")
    seqlen: int = same_as(PerplexitySettings, "seqlen")
    windows: int | None = same_as(PerplexitySettings, "windows")
    batch: int = same_as(PerplexitySettings, "batch")
    dtype: str | None = same_as(PerplexitySettings, "dtype")
    fake: bool = same_as(PerplexitySettings, "fake")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SpeedSettings:
    """How speed and memory are measured, at batch 1."""

    prefill: int = setting(512, minimum=1, help="Tokens of the prompt whose prefill is timed.")
    decode: int = setting(64, minimum=1, help="Tokens decoded greedily after a prompt of 32 tokens.")
    repeats: int = setting(5, minimum=1, help="Timed repetitions, after one that warms up; medians are shown.")
    memory: bool = setting(True, help="Measure the peak memory of each checkpoint in a process of its own.")
    dataset: str = dataset_setting("stdlib", "Text whose held-out part gives the prompts of the draft measurement.")
    prompts: int = setting(6, minimum=1, help="Prompts that are decoded plainly and with the draft.")
    shapes: tuple[tuple[int, int, int], ...] = ((3, 1, 0),)
    """Tree shapes of the draft: (depth, top-k, total nodes) each."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TaskSettings:
    """Which of lm-eval's tasks are run, and how."""

    tasks: tuple[str, ...] = setting(
        option="--task",
        metavar="NAME",
        help="A task by lm-eval's name (piqa, hellaswag, ...) or of a file in `task_path`; repeatable.",
    )
    task_path: str | None = setting(
        None, metavar="DIR", help="Folder of task files (YAML and their data), which need no network."
    )
    limit: int | None = setting(None, minimum=1, help="Documents per task. Default: all.")
    fewshot: int | None = setting(None, minimum=0, help="Examples before each document. Default: the task's own.")
    batch: int = setting(8, minimum=1, help="Rows per forward pass.")
    chat: bool = setting(False, help="Put prompts into the model's chat template.")
    seed: int = seed_setting()
    task_code: bool = setting(False, help="Allow task files that run Python functions of their own.")

    def __post_init__(self) -> None:
        check(self)
        if not self.tasks:
            raise InputError(
                "no task: give `tasks` (lm-eval's names, or those of files in `task_path`)",
                field=("tasks", "task_path"),
            )
