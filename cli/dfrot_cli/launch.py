"""The processes that torchrun or accelerate launch describes in the environment."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dfrot.ranks.settings import RankSettings
from dfrot_cli import show
from dfrot_cli.devices import devices_of, require_devices
from dfrot_cli.flags import COMMAND, with_flags
from dfrot_cli.launcher_environment import place_on_machine, world_size
from dfrot_cli.own_processes import start_processes
from dfrot_cli.setting_options import options_of

if TYPE_CHECKING:
    from dfrot.ranks.processes import ProcessRanks
    from dfrot_cli.options import Common

Function = TypeVar("Function", bound=Callable[..., Any])


def ranked(function: Function) -> Function:
    """For a command whose work several processes share: adds --processes and --rank-timeout; the function receives
    `ranks: Ranks`, the `common` options with its own device, and `processes`, which is more than 1 in a plan only.

    Stands below `common`, which refuses every other command when it is started on several ranks."""

    @functools.wraps(function)
    def wrapped(*, rank_timeout: float, processes: int, common: Common, **values: Any) -> Any:
        devices = devices_of(common.device)
        if not common.plan:
            require_devices(devices)
            wanted = _processes(processes, devices)
            if wanted > 1 and world_size() == 1:
                start_processes(wanted)
            processes = 1
        own = replace(common, device=devices[place_on_machine() % len(devices)])
        with joined(rank_timeout) as ranks:
            return function(ranks=ranks, common=own, processes=processes, **values)

    wrapped.shares_ranks = True  # type: ignore[attr-defined]
    return options_of(RankSettings)(wrapped)  # type: ignore[return-value]


def _processes(given: int, devices: list[str]) -> int:
    """How many processes a command asks for. Raises InputError where what it says does not agree."""
    from dfrot.errors import InputError

    if given > 1 and 1 < len(devices) != given:
        raise InputError(
            f"`processes={given}` and {len(devices)} devices: one process for each device; leave one of them out",
            field=("processes", "device"),
        )
    wanted, size = max(given, len(devices)), world_size()
    if wanted > 1 and 1 < size != wanted:
        raise InputError(
            f"a launcher started {size} processes, {wanted} are asked for; leave out `processes` and `device`",
            field=("processes", "device"),
        )
    return wanted


def shares_ranks(function: Function) -> Function:
    """For a command that makes use of a launcher's processes in its own way. Stands below `common`."""
    function.shares_ranks = True  # type: ignore[attr-defined]
    return function


def _meeting() -> tuple[int, int, str, int]:
    """Rank, number of ranks, address and port. Raises InputError for an environment that is not complete."""
    from dfrot.errors import InputError

    size = os.environ.get("WORLD_SIZE", "1")
    try:
        return int(os.environ["RANK"]), int(size), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise InputError(
            f"WORLD_SIZE is {size}, but RANK, MASTER_ADDR and MASTER_PORT do not describe the others; "
            "start with torchrun or accelerate launch"
        ) from None


@contextlib.contextmanager
def joined(timeout: float) -> Iterator[Any]:
    """The ranks of this run, `dfrot.ranks.single.Ranks`. All but the first are mute inside; an error ends the process
    with one line, on the others too."""
    from dfrot.ranks.single import SINGLE

    if world_size() == 1:
        yield SINGLE
        return
    place = _meeting()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # stack traces of connections that end or are not made
    from dfrot.ranks.processes import ProcessRanks

    ranks = ProcessRanks(*place, timeout)
    use_own_device()
    signal.signal(signal.SIGTERM, functools.partial(_terminated, ranks))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.ExitStack() as stack:
        if not ranks.first:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield ranks
            ranks.leave()
        except click.exceptions.Exit:
            raise
        except BaseException as error:
            stack.close()
            _end(ranks, error)


def use_own_device() -> None:
    """Let `cuda` mean the device of this rank on its machine."""
    local = os.environ.get("LOCAL_RANK", "")
    if local.isdigit():
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(local) % torch.cuda.device_count())


def _terminated(ranks: ProcessRanks, number: int, frame: Any) -> NoReturn:
    """The launcher ends a run of which one rank is lost; say which, before it insists."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ranks.stopped(RuntimeError("the launcher ended this process"))


def _end(ranks: ProcessRanks, error: BaseException) -> NoReturn:
    """End this process by an error: one line, or a traceback for a bug. Ranks that run into the error of another one
    leave the word to it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from dfrot.errors import DfqError

    code = error.exit_code if isinstance(error, DfqError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    reason = " ".join(str(error).split()) or type(error).__name__
    other = getattr(error, "code", None)
    speaker: int | None = None
    if other != "rank_lost":  # of which every rank speaks
        speaker = -1 if other == "rank_stopped" else ranks.fail(reason)
    if isinstance(error, DfqError):
        context = click.get_current_context(silent=True)
        place = "" if ranks.first or other == "rank_lost" else f"rank {ranks.rank}: "
        line = f"Error: {place}{with_flags(reason, context.meta.get(COMMAND) if context else None)}"
    elif isinstance(error, KeyboardInterrupt):
        line = "Error: interrupted; run the same command again to continue"
    else:
        line = "".join(traceback.format_exception(error))
    if speaker in (None, ranks.rank):
        show.note(line)
    sys.stdout.flush()
    sys.stderr.flush()
    ranks.depart()
    os._exit(code)  # gloo may wait for ever for ranks that are gone


@contextlib.contextmanager
def launched(shard: bool = False) -> Iterator[Any]:
    """The process group of a training that a launcher describes in the environment; this process alone without one.

    shard: every process holds a part of the draft. Raises InputError for an environment that is not complete."""
    from dfrot.draft.training.distributed import DistributedGroup, LocalGroup
    from dfrot.errors import InputError

    if world_size() == 1:
        if shard:
            raise InputError(
                "`shard` splits a draft between processes, and this is a single one; start with torchrun", field="shard"
            )
        yield LocalGroup()
        return
    group = DistributedGroup(*_meeting(), shard)
    try:
        yield group
    finally:
        group.leave()
