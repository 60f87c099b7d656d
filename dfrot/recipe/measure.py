"""The measuring stages of a recipe, and the metrics that expectations name.

What a stage keeps must be the same in every run of the same request, so times and speeds are left out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfrot.checkpoint import Checkpoint
from dfrot.files import digest_bytes
from dfrot.settings import setting
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.stages.draft import evaluate as draft_eval
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.vision.fingerprint import checkpoint_fingerprint

CHECKPOINTS = ("model", "fixed", "rotated", "packed")
EVAL, DRAFT_EVAL = "eval", "draft eval"
_TIMES = ("_per_second", "_ms", "seconds", "speedup", "speedup_quartiles")


@dataclass(frozen=True)
class CheckpointEval(PerplexitySettings):
    """The checkpoints of a recipe's run that are evaluated on the same windows."""

    checkpoints: tuple[str, ...] = setting(
        ("model", "packed"), help="Which folders of the run are evaluated; the first is the baseline."
    )


def timeless(value: Any) -> Any:
    """`value` without what differs between two runs of the same request."""
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
    """Perplexities of `settings.checkpoints` as a stage; its evidence is the report of `evaluate` by folder name."""
    paths = [folders[name] for name in settings.checkpoints]
    settled = {key: value for key, value in asdict(settings).items() if key != "threads"}
    request = {"models": [Checkpoint.open(path).digest() for path in paths], "settings": settled}
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
    kinds = ["perplexity", "ratio", *(["kl", "top1"] if settings.kl else [])]
    return [f"{name}.{kind}" for name in settings.checkpoints for kind in kinds]


def eval_metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    """`packed.perplexity`, `packed.ratio` (to the first), `packed.kl`, ..."""
    found: dict[str, float] = {}
    for result in evidence["report"]["results"]:
        kinds = {"perplexity": "perplexity", "ratio": "ratio_to_first", "kl": "kl", "top1": "top1"}
        found |= {f"{result['model']}.{kind}": result[key] for kind, key in kinds.items() if result[key] is not None}
    return found


def evaluate_draft(
    folders: Mapping[str, Path],
    settings: DraftEvalSettings,
    out: Path,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Acceptance and losslessness of the run's draft on its target, as a stage."""
    target = folders["packed"] if "packed" in folders else folders.get("rotated", folders["model"])
    weights = sorted(folders["draft"].glob("draft*"))
    request = {
        "target": checkpoint_fingerprint(target),
        "draft": digest_bytes(*(file.read_bytes() for file in weights)),
        "settings": asdict(settings),
    }
    with open_stage(out, DRAFT_EVAL, request, resume, overwrite) as stage:
        if not stage.finished:
            stage.publish({"report": timeless(draft_eval.evaluate(target, folders["draft"], settings, progress))})
    return read_record(out, DRAFT_EVAL)


def draft_metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    """`draft.tau` of the best shape; `draft.identical`: share of outputs equal to plain decoding's, greedy only."""
    shapes = evidence["report"]["shapes"].values()
    found = {"draft.tau": max(float(one["tau"]) for one in shapes)}
    told = [one["identical"].split("/") for one in shapes if "identical" in one]
    if told:
        found["draft.identical"] = sum(int(same) for same, _ in told) / sum(int(count) for _, count in told)
    return found


def sizes(evidence: Mapping[str, Any]) -> dict[str, float]:
    """`packed.bits_per_weight`, `packed.bytes`."""
    size = evidence["sizes"]
    return {"packed.bits_per_weight": float(size["bits_per_quantized_weight"]), "packed.bytes": float(size["bytes"])}
