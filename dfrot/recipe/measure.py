"""The measuring stages of a recipe, and the metrics that expectations can name.

What a stage keeps is the same in every run of the same request, so times and speeds are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.files import digest_bytes
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.recipe.settings import CheckpointEval
from dfrot.stage_folder import open_stage, read_record
from dfrot.stages.draft import evaluate as draft_eval
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.vision.fingerprint import checkpoint_fingerprint

CHECKPOINTS = ("model", "fixed", "rotated", "packed")
EVAL, DRAFT_EVAL = "eval", "draft eval"
_TIMES = ("_per_second", "_ms", "seconds", "speedup", "speedup_quartiles")


def timeless(value: Any) -> Any:
    """`value` (JSON) without the times and speeds, which differ between two runs of the same request."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if not key.endswith(_TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def evaluate_checkpoints(
    folders: Mapping[str, Path],
    settings: CheckpointEval,
    out: Path,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the perplexities of `settings.checkpoints` as the folder `out`; returns its record, with the report of
    `evaluate` by folder name. folders: those of the run, by name."""
    paths = [folders[name] for name in settings.checkpoints]
    kept = {key: value for key, value in asdict(settings).items() if key != "threads"}
    request = {"models": [open_model(path).digest() for path in paths], "settings": kept}
    with open_stage(out, EVAL, request, resume, overwrite) as stage:
        if not stage.finished:
            plain = PerplexitySettings(
                **{key: value for key, value in asdict(settings).items() if key != "checkpoints"}
            )
            report = timeless(evaluate(paths, plain, progress))
            for name, result in zip(settings.checkpoints, report["results"]):
                result["model"] = name  # a path would tie the result to this machine
            stage.publish({"report": report})
    return read_record(out, EVAL)


def eval_names(settings: CheckpointEval) -> list[str]:
    """The metrics that `eval_metrics` gives for these settings."""
    kinds = ["perplexity", "ratio", *(["kl", "top1"] if settings.kl else [])]
    return [f"{name}.{kind}" for name in settings.checkpoints for kind in kinds]


def eval_metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a record of `evaluate_checkpoints`: `packed.perplexity`, `packed.ratio` (to the first), ..."""
    metrics: dict[str, float] = {}
    for result in evidence["report"]["results"]:
        kinds = {"perplexity": "perplexity", "ratio": "ratio_to_first", "kl": "kl", "top1": "top1"}
        metrics |= {f"{result['model']}.{kind}": result[key] for kind, key in kinds.items() if result[key] is not None}
    return metrics


def evaluate_draft(
    folders: Mapping[str, Path],
    settings: DraftEvalSettings,
    out: Path,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish acceptance and losslessness of the run's draft on its target as the folder `out`; returns its record."""
    target = folders["packed"] if "packed" in folders else folders.get("rotated", folders["model"])
    weights = sorted(folders["draft"].glob("draft*"))
    request = {
        "target": checkpoint_fingerprint(target),
        "draft": digest_bytes(*(file.read_bytes() for file in weights)),
        "settings": asdict(settings),
    }
    with open_stage(out, DRAFT_EVAL, request, resume, overwrite) as stage:
        if not stage.finished:
            stage.publish({"report": timeless(draft_eval.evaluate(target, [folders["draft"]], settings, progress))})
    return read_record(out, DRAFT_EVAL)


def draft_metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a record of `evaluate_draft`: `draft.tau` of the best tree shape and, for greedy decoding,
    `draft.identical`, the share of outputs that equal plain decoding's."""
    shapes = evidence["report"]["shapes"].values()
    metrics = {"draft.tau": max(float(row["tau"]) for row in shapes)}
    counts = [row["identical"].split("/") for row in shapes if "identical" in row]
    if counts:
        metrics["draft.identical"] = sum(int(same) for same, _ in counts) / sum(int(total) for _, total in counts)
    return metrics


def sizes(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a record of `quantize`: `packed.bits_per_weight` and `packed.bytes`."""
    size = evidence["sizes"]
    return {"packed.bits_per_weight": float(size["bits_per_quantized_weight"]), "packed.bytes": float(size["bytes"])}
