"""Options that every command takes, and what they mean before a command's own work begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from dfrot.settings import same_as, seed_setting, setting
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot_cli.devices import AUTO, devices_of, every_device, require_devices
from dfrot_cli.flags import COMMAND
from dfrot_cli.launcher_environment import world_size
from dfrot_cli.setting_options import help_of, options_of

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Common:
    """The options of every command."""

    seed: int = seed_setting()
    device: str = setting(
        "cpu",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N. Several with commas between them, or auto (all CUDA devices, else cpu), for "
        "commands whose work processes share: a process for each.",
    )
    threads: int = same_as(PerplexitySettings, "threads")
    json: bool = setting(False, help="Print one JSON document on stdout in place of tables.")
    plan: bool = setting(False, help="Show what would be done, then stop.")
    resume: bool | None = setting(
        None,
        option="--resume/--no-resume",
        help="Insist on continuing an interrupted run, or start over. Default: continue if there is one.",
    )
    overwrite: bool = setting(False, help="Replace an existing output, if dfq wrote it.")

    def prepare(self, cuda: bool = False) -> None:
        """Apply --threads and refuse a device that this machine lacks. Imports torch.

        cuda: whether the command can use a CUDA device. Raises ResourceError or UnsupportedError."""
        import torch

        from dfrot.errors import UnsupportedError

        if self.threads:
            torch.set_num_threads(self.threads)
        names = devices_of(self.device)
        if len(names) > 1:
            raise UnsupportedError(
                f"`device={self.device}`: this command works on one device; name one", field="device"
            )
        require_devices(names)
        if names == ["cpu"]:
            return
        if not cuda:
            raise UnsupportedError(
                f"`device={self.device}`: this command works on the CPU only; use `device=cpu`", field="device"
            )
        if ":" in self.device:
            torch.cuda.set_device(self.device)

    def stage(self) -> dict[str, Any]:
        """The arguments that every resumable library function takes."""
        return {"resume": self.resume, "overwrite": self.overwrite}


def common(function: Function) -> Function:
    """Add the options of every command; the function receives them as `common: Common`."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        context = click.get_current_context()
        context.meta[COMMAND] = context.command
        if not getattr(function, "shares_ranks", False):
            _refuse_ranks(context.info_name or "this command")
        options = Common(**{name: values.pop(name) for name in Common.__dataclass_fields__})
        if options.device == AUTO:
            options = replace(options, device=every_device())
        return function(common=options, **values)

    return options_of(Common, skip=())(wrapped)  # type: ignore[return-value]


def _refuse_ranks(name: str) -> None:
    """Raise UnsupportedError where a launcher started several processes of a command that works in a single one."""
    from dfrot.errors import UnsupportedError

    if (size := world_size()) > 1:
        raise UnsupportedError(f"WORLD_SIZE is {size}, but {name} works in a single process; start it without torchrun")


def out_option(text: str) -> Callable[[Function], Function]:
    """--out: the result's folder or file; required, never guessed."""
    return click.option("--out", type=click.Path(path_type=Path), required=True, metavar="PATH", help=text)


def file_option(text: str, metavar: str = "FILE") -> Callable[[Function], Function]:
    """--out of commands that print their result and also write it where this is given."""
    return click.option("--out", type=click.Path(path_type=Path), metavar=metavar, help=text)


def require_new(out: Path | None, common: Common) -> None:
    """Refuse an output that exists, unless it is to be replaced."""
    from dfrot.errors import ExistsError

    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(
            f"{out}: already exists; choose another `out`, or replace it with `overwrite`",
            field=("out", "overwrite"),
            file=out,
        )


def dataset_option(settings: type[Any]) -> Callable[[Function], Function]:
    """--dataset of commands that choose the text by the model where none is given."""
    text = help_of(settings, "dataset").split(". None ")[0].rstrip(".")
    return click.option(
        "--dataset",
        metavar="D",
        help=f"{text}: wikitext2, stdlib, or a file (.txt, .json, .jsonl, .parquet) or folder. Default: wikitext2; "
        "stdlib for the reference models.",
    )


def path_option(*flags: str, text: str, metavar: str, required: bool = False) -> Callable[[Function], Function]:
    """An option that names a file or folder."""
    return click.option(*flags, type=click.Path(path_type=Path), required=required, metavar=metavar, help=text)


model_option = click.option(
    "--model",
    required=True,
    metavar="M",
    help="The checkpoint: a folder, a .gguf file, a hub id, an alias (see dfq models), reference or reference-vlm.",
)
