"""Processes that a command starts itself: torchrun's own launcher, for a user who does not call it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from typing import NoReturn

import click

LOOK = 0.1  # seconds between two looks at the processes
KILLED = 2  # the exit code where a process was killed: the user can give the command again


def start_processes(count: int) -> NoReturn:
    """Run this very command in `count` processes on this machine, as `torchrun --standalone` does, and end with their
    exit code. What they print is all that is printed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    logging.disable(logging.CRITICAL)  # the launcher's account of a process that failed, which spoke for itself
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=LOOK,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dfrot_cli", *sys.argv[1:])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        raise click.exceptions.Exit(next((code for code in codes if code > 0), KILLED)) from None
    except SignalException as error:
        raise click.exceptions.Exit(128 + signal.Signals(error.sigval)) from None
    raise click.exceptions.Exit(0)
