"""`dfq eval tasks`: lm-eval's tasks on our checkpoints, beside a baseline, each difference paired over documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfrot.draft.load import open_engine
from dfrot.errors import ResourceError, UnsupportedError
from dfrot.evaluate.intervals import as_list, mean_interval
from dfrot.generation.engine import Engine
from dfrot.generation.settings import NgramSettings
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.stages.evaluate.inputs import open_checkpoints
from dfrot.stages.evaluate.lm_eval_tasks import silenced, task_manager
from dfrot.stages.evaluate.settings import TaskSettings

KIND = "eval tasks"
BOOTSTRAP_ITERATIONS = 1000  # of lm-eval's standard errors


def evaluate_tasks(
    models: Sequence[Path],
    settings: TaskSettings,
    draft: Path | NgramSettings | None = None,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
) -> dict[str, Any]:
    """Run lm-eval's tasks on checkpoints. ranks: share the requests of a task; each returns the result.

    draft: of the last checkpoint, a folder or settings of look-up drafting, for tasks that generate (same text,
    sooner).

    Returns {"kind", "lm_eval", "settings", "results"}: per checkpoint {"model", "scheme", "scores"}, and "notes" where
    requests had to be changed to fit the model; scores by task and metric: value, stderr, documents and, for all but
    the first checkpoint, the difference from it with its paired 95 % interval over documents.

    Raises ResourceError when lm-eval is not installed or a task's data cannot be loaded."""
    checkpoints = open_checkpoints(models)
    try:
        import lm_eval
    except ModuleNotFoundError:
        raise ResourceError("dfq eval tasks needs lm-eval, which is not installed: pip install 'dfq[tasks]'") from None
    results: list[dict[str, Any]] = []
    baseline: dict[str, Any] = {}
    with silenced() as unsilenced:
        with ranks.first_goes_ahead():  # which fetches the data
            manager = task_manager(settings)
        for number, checkpoint in enumerate(checkpoints):
            name = checkpoint.path.name

            def report(label: str, done: int, total: int, name: str = name) -> None:
                progress(f"{name}: {label}", done, total)

            engine = open_engine(checkpoint.path, draft if number == len(checkpoints) - 1 else None)
            output, notes = _run(lm_eval, manager, engine, settings, unsilenced(report), ranks)
            scores = {task: _scores(task, output, baseline) for task in output["results"] if task in output["samples"]}
            result = {"model": str(checkpoint.path), "scheme": checkpoint.scheme, "scores": scores}
            results.append({**result, "notes": notes} if notes else result)
            baseline = baseline or output
    return {"kind": KIND, "lm_eval": lm_eval.__version__, "settings": asdict(settings), "results": results}


def _run(
    lm_eval: Any, manager: Any, engine: Engine, settings: TaskSettings, progress: Progress, ranks: Ranks
) -> tuple[dict[str, Any], list[str]]:
    """lm-eval's own output for one checkpoint, and notes; leaves torch's random state as it was."""
    from dfrot.stages.evaluate.lm_eval_model import DfqLM

    if settings.chat and not engine.has_chat_template:
        raise UnsupportedError("`chat`: the model has no chat template; leave it out", field="chat")
    state = torch.get_rng_state()
    model = DfqLM(engine, settings.batch, settings.seed, progress, ranks)
    try:
        output = dict(
            lm_eval.simple_evaluate(
                model=model,
                tasks=list(settings.tasks),
                task_manager=manager,
                num_fewshot=settings.fewshot,
                limit=settings.limit,
                apply_chat_template=settings.chat,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
                bootstrap_iters=BOOTSTRAP_ITERATIONS,
            )
        )
        return output, model.notes
    finally:
        torch.set_rng_state(state)


def _scores(task: str, output: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Scores by metric; "acc,none" is named acc, other filters stay in the name. baseline: its output, or empty."""
    scores: dict[str, Any] = {}
    for key, value in output["results"][task].items():
        metric, _, label = key.partition(",")
        if not label or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = output["results"][task].get(f"{metric}_stderr,{label}")
        name = metric if label == "none" else f"{metric}:{label}"
        scores[name] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, (int, float)) else None,
            "documents": len({sample["doc_id"] for sample in output["samples"][task]}),
        }
        if baseline:
            own, base = (_by_document(source, task, metric, label) for source in (output, baseline))
            scores[name] |= _difference(own, base)
    return scores


def _by_document(output: dict[str, Any], task: str, metric: str, label: str) -> dict[int, float]:
    """Document id -> its metric, where that is a number of its own (metrics of a whole corpus are not)."""
    samples = [sample for sample in output["samples"][task] if sample.get("filter", label) == label]
    return {
        sample["doc_id"]: float(sample[metric])
        for sample in samples
        if isinstance(sample.get(metric), (bool, int, float))
    }


def _difference(own: dict[int, float], base: dict[int, float]) -> dict[str, Any]:
    """Mean difference over the documents of both, with its paired interval."""
    common = sorted(set(own) & set(base))
    if not common:
        return {"difference": None, "difference_ci": None}
    differences = torch.tensor([own[document] - base[document] for document in common], dtype=torch.float64)
    mean, interval = mean_interval(differences)
    return {"difference": mean, "difference_ci": as_list(interval)}
