"""lm-eval from the outside: its table of tasks, checked, and its output, silenced."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, ResourceError, UnsupportedError
from dfrot.progress import Progress
from dfrot.stages.evaluate.settings import TaskSettings


def task_manager(settings: TaskSettings) -> Any:
    """lm-eval's table of tasks, checked: every task is known and its data can be read.

    Raises InputError for an unknown task or folder, UnsupportedError for task files with code that is not allowed,
    ResourceError for data that cannot be loaded."""
    from lm_eval.tasks import TaskManager

    path = None
    if settings.task_path is not None:
        path = Path(settings.task_path)
        if not path.is_dir():
            raise InputError(
                f"{path}: no such folder; `task_path` holds the YAML files of tasks", field="task_path", file=path
            )
        if not settings.task_code:
            _refuse_code(path)
    include = None if path is None else str(path)
    local = TaskManager(include_path=include, include_defaults=False) if include else None
    all_local = local is not None and set(settings.tasks) <= set(local.all_tasks)
    manager: Any = local if all_local else TaskManager(include_path=include)  # the table of all tasks takes seconds
    for task in settings.tasks:
        if not manager.match_tasks([task]):
            hint = f"; {path} holds {', '.join(sorted(local.all_tasks)) or 'none'}" if local is not None else ""
            raise InputError(f"`task` {task}: lm-eval does not know it{hint}", field="task")
        try:
            manager.load([task])
        except Exception as error:  # no network, a gated set, a broken file: many types, one meaning
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise ResourceError(
                f"`task` {task}: cannot be loaded ({type(error).__name__}: {reason}); offline, give as `task_path` a "
                "folder with the task and its data",
                field=("task", "task_path"),
            ) from None
    return manager


def _refuse_code(path: Path) -> None:
    """Raise UnsupportedError when a YAML file below `path` names Python functions."""
    for file in sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]):
        if "!function" in file.read_text(encoding="utf-8", errors="replace"):
            raise UnsupportedError(
                f"{file}: brings Python code (!function), which would be run; allow it with `task_code`",
                field="task_code",
                file=file,
            )


@contextlib.contextmanager
def silenced() -> Iterator[Callable[[Progress], Progress]]:
    """Silence lm-eval's progress bars and log lines, which are not the library's to show.

    Yields a function that lets our own progress callback through."""
    stream, logger = sys.stderr, logging.getLogger("lm_eval")
    level = logger.level

    def unsilenced(progress: Progress) -> Progress:
        def report(label: str, done: int, total: int) -> None:
            with contextlib.redirect_stderr(stream):
                progress(label, done, total)

        return report

    from lm_eval import evaluator

    logger.setLevel(logging.CRITICAL)
    find_commit = evaluator.get_git_commit_hash  # runs git in the current folder, which complains on its own stderr
    evaluator.get_git_commit_hash = lambda: None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield unsilenced
    finally:
        evaluator.get_git_commit_hash = find_commit
        logger.setLevel(level)
