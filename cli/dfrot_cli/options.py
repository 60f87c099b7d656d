"""Options that every command takes, and what they mean before a command's own work begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Common:
    """The options of every command. resume: None continues an interrupted run if there is one."""

    seed: int
    device: str
    threads: int
    json: bool
    plan: bool
    resume: bool | None
    overwrite: bool

    def prepare(self, cuda: bool = False) -> None:
        """Apply --threads and refuse a device that is not there. Imports torch. `cuda`: the command can use one."""
        import torch

        from dfrot.errors import ResourceError, UnsupportedError

        if self.threads:
            torch.set_num_threads(self.threads)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ResourceError("--device cuda: no usable CUDA device on this machine; use --device cpu")
        if self.device == "cuda" and not cuda:
            raise UnsupportedError("--device cuda: this command works on the CPU only; use --device cpu")

    def stage(self) -> dict[str, Any]:
        """The arguments that every resumable library function takes."""
        return {"resume": self.resume, "overwrite": self.overwrite}


_OPTIONS = (
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
    click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 leaves it to torch."),
    click.option("--json", is_flag=True, help="Print one JSON document on stdout instead of tables."),
    click.option("--plan", is_flag=True, help="Show what would be done, then stop."),
    click.option(
        "--resume/--no-resume",
        default=None,
        help="Demand that an interrupted run continues / start over. Default: continue if there is one.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an existing output."),
)


def common(function: Function) -> Function:
    """Add the options of every command; the function receives them as one `common: Common`."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        names = Common.__dataclass_fields__
        given = Common(**{name: values.pop(name) for name in names})
        return function(common=given, **values)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def out_option(text: str) -> Callable[[Function], Function]:
    """--out: where the result goes; always asked for, never guessed."""
    return click.option("--out", type=click.Path(path_type=Path), required=True, metavar="PATH", help=text)


dataset_option = click.option(
    "--dataset",
    metavar="D",
    help="wikitext2, stdlib, or a file (.txt, .jsonl, .parquet) or folder. Default: wikitext2; stdlib for reference.",
)
scheme_option = click.option(
    "--scheme", default="w4a4kv4", show_default=True, help="Bits and conventions: w4a4kv4, w4a16-g128, w3a3kv3, ..."
)
seqlen_option = click.option("--seqlen", type=click.IntRange(2), default=2048, show_default=True, help="Window length.")
model_option = click.option(
    "--model",
    required=True,
    metavar="M",
    help="A folder, a hub id, an alias (see dfq models), reference or reference-vlm.",
)
