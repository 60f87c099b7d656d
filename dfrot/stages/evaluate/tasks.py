"""`dfq eval tasks`: lm-eval's tasks on our checkpoints, beside a baseline, each difference paired over documents."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfrot.draft.load import open_engine
from dfrot.errors import InputError, ResourceError, UnsupportedError
from dfrot.evaluate.intervals import mean_interval
from dfrot.generation.engine import Engine
from dfrot.runtime.load import check_folder
from dfrot.stage_folder import Progress, silent
from dfrot.stages.evaluate.settings import TaskSettings

KIND = "eval tasks"


def evaluate_tasks(
    models: Sequence[Path], settings: TaskSettings, draft: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """{"kind", "lm_eval", "settings", "results"}: per checkpoint {"model", "scheme", "scores"}, scores by task and
    metric: value, stderr, documents and, behind the first checkpoint, difference to it with its paired 95 %
    interval over documents. draft: of the last checkpoint, for tasks that generate (same text, sooner).

    Raises ResourceError when lm-eval is not installed or a task's data cannot be had."""
    if not models:
        raise InputError("no checkpoint to evaluate; give --model")
    try:
        import lm_eval
    except ModuleNotFoundError:
        raise ResourceError("dfq eval tasks needs lm-eval, which is not installed: pip install 'dfq[tasks]'") from None
    checked = [check_folder(Path(model)) for model in models]
    results: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    with _quiet() as aloud:
        manager = _manager(settings)
        for number, (checkpoint, config) in enumerate(checked):
            name = checkpoint.path.name
            engine = open_engine(checkpoint.path, draft if number == len(checked) - 1 else None)
            found = _run(
                lm_eval, manager, engine, settings, aloud(lambda *a, name=name: progress(f"{name}: {a[0]}", *a[1:]))
            )
            scheme = config.scheme.name if config is not None and config.scheme is not None else None
            scores = {task: _scores(task, found, first) for task in found["results"] if task in found["samples"]}
            results.append({"model": str(checkpoint.path), "scheme": scheme, "scores": scores})
            first = first or found
    return {"kind": KIND, "lm_eval": lm_eval.__version__, "settings": asdict(settings), "results": results}


def _run(lm_eval: Any, manager: Any, engine: Engine, settings: TaskSettings, progress: Progress) -> dict[str, Any]:
    from dfrot.stages.evaluate.lm_eval_model import DfqLM

    if settings.chat and not engine.has_chat_template:
        raise UnsupportedError("--chat: the model has no chat template; leave it out")
    state = torch.get_rng_state()
    try:
        return dict(
            lm_eval.simple_evaluate(
                model=DfqLM(engine, settings.batch, settings.seed, progress),
                tasks=list(settings.tasks),
                task_manager=manager,
                num_fewshot=settings.fewshot,
                limit=settings.limit,
                apply_chat_template=settings.chat,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
                bootstrap_iters=1000,
            )
        )
    finally:
        torch.set_rng_state(state)


def _manager(settings: TaskSettings) -> Any:
    """lm-eval's table of tasks, checked: every task is there and its data can be read."""
    from lm_eval.tasks import TaskManager

    path = None
    if settings.task_path is not None:
        path = Path(settings.task_path)
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; --task-path holds the YAML files of tasks")
        if not settings.task_code:
            _refuse_code(path)
    include = None if path is None else str(path)
    local = TaskManager(include_path=include, include_defaults=False) if include else None
    known = local is not None and set(settings.tasks) <= set(local.all_tasks)
    manager: Any = local if known else TaskManager(include_path=include)  # the table of all tasks takes seconds
    for task in settings.tasks:
        if not manager.match_tasks([task]):
            there = f"; {path} holds {', '.join(sorted(local.all_tasks)) or 'none'}" if local is not None else ""
            raise InputError(f"--task {task}: lm-eval does not know it{there}")
        try:
            manager.load([task])
        except Exception as error:  # no network, a gated set, a broken file: many types, one meaning
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise ResourceError(
                f"--task {task}: cannot be loaded ({type(error).__name__}: {reason}); offline, give --task-path a "
                "folder with the task and its data"
            ) from None
    return manager


def _refuse_code(path: Path) -> None:
    for file in sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]):
        if "!function" in file.read_text(encoding="utf-8", errors="replace"):
            raise UnsupportedError(
                f"{file}: brings Python code (!function), which would be run; allow it with --task-code"
            )


def _scores(task: str, found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """By metric; "acc,none" is named acc, other filters stay in the name."""
    scores: dict[str, Any] = {}
    for key, value in found["results"][task].items():
        metric, _, label = key.partition(",")
        if not label or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = found["results"][task].get(f"{metric}_stderr,{label}")
        name = metric if label == "none" else f"{metric}:{label}"
        row = {"value": float(value), "stderr": float(error) if isinstance(error, (int, float)) else None}
        scores[name] = {**row, "documents": len({one["doc_id"] for one in found["samples"][task]})}
        if first:
            scores[name] |= _difference(_documents(found, task, metric, label), _documents(first, task, metric, label))
    return scores


def _documents(found: dict[str, Any], task: str, metric: str, label: str) -> dict[int, float]:
    """The metric of every document, where it is a number of its own (corpus metrics are not)."""
    rows = [one for one in found["samples"][task] if one.get("filter", label) == label]
    return {one["doc_id"]: float(one[metric]) for one in rows if isinstance(one.get(metric), (bool, int, float))}


def _difference(own: dict[int, float], base: dict[int, float]) -> dict[str, Any]:
    common = sorted(set(own) & set(base))
    if not common:
        return {"difference": None, "difference_ci": None}
    mean, interval = mean_interval(torch.tensor([own[n] - base[n] for n in common], dtype=torch.float64))
    return {"difference": mean, "difference_ci": None if interval is None else list(interval)}


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[Progress], Progress]]:
    """lm-eval's bars and log lines are not the library's to show; yields what lets our own progress through."""
    stream, logger = sys.stderr, logging.getLogger("lm_eval")
    level = logger.level

    def aloud(progress: Progress) -> Progress:
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
            yield aloud
    finally:
        evaluator.get_git_commit_hash = find_commit
        logger.setLevel(level)
