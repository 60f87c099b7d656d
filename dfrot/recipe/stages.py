"""The stages that a recipe can name: settings, folder, and the library function behind each.

The functions are those of the commands; a stage's folder is what the command would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import InputError
from dfrot.export.fit import fit, target_of
from dfrot.export.run import export
from dfrot.export.settings import ExportSettings
from dfrot.quant.scheme import QuantScheme
from dfrot.recipe import measure
from dfrot.recipe.settings import CheckpointEval
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.draft.settings import DraftEvalSettings, DraftSettings
from dfrot.stages.draft.train import train as train_draft
from dfrot.stages.outliers.fix import fix
from dfrot.stages.outliers.settings import FixSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QUICK, QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Folders = Mapping[str, Path]
"""Folders by name: `model`, and those of the stages that ran so far."""


@dataclass(frozen=True)
class RecipeStage:
    """One stage of a recipe."""

    settings: type[Any]
    """The settings class, which is the schema of the stage's section."""
    folder: str
    """The name of the stage's folder in the run folder."""
    run: Callable[..., dict[str, Any]]
    """run(folders, settings, out, progress=, resume=, overwrite=) publishes the folder and returns its record."""
    metrics: Callable[[Mapping[str, Any]], dict[str, float]] = lambda record: {}
    """Metrics by name, from the record."""


def source(folders: Folders) -> Path:
    """The 16-bit checkpoint that the next stage reads: rotated, else fixed, else the model itself."""
    return next(folders[name] for name in ("rotated", "fixed", "model") if name in folders)


def final(folders: Folders) -> Path:
    """The last checkpoint of the run so far."""
    return folders["packed"] if "packed" in folders else source(folders)


def _fix(folders: Folders, settings: FixSettings, out: Path, **options: Any) -> dict[str, Any]:
    return fix(folders["model"], out, settings, **options)


def _rotate(folders: Folders, settings: RotateSettings, out: Path, **options: Any) -> dict[str, Any]:
    return rotate(source(folders), out, settings, **options)


def _calibrate(folders: Folders, settings: CalibrateSettings, out: Path, **options: Any) -> dict[str, Any]:
    return calibrate(source(folders), out, settings, **options)


def _quantize(folders: Folders, settings: QuantizeSettings, out: Path, **options: Any) -> dict[str, Any]:
    return quantize(source(folders), folders.get("calibration"), out, settings, **options)


def _draft(folders: Folders, settings: DraftSettings, out: Path, **options: Any) -> dict[str, Any]:
    return train_draft(final(folders), out, settings, **options)


def _export(folders: Folders, settings: ExportSettings, out: Path, **options: Any) -> dict[str, Any]:
    return export(
        final(folders), settings.to, out, settings.scheme, dtype=settings.dtype, online_r4=settings.online_r4, **options
    )


STAGES: dict[str, RecipeStage] = {
    "outliers_fix": RecipeStage(FixSettings, "fixed", _fix),
    "rotate": RecipeStage(RotateSettings, "rotated", _rotate),
    "calibrate": RecipeStage(CalibrateSettings, "calibration", _calibrate),
    "quantize": RecipeStage(QuantizeSettings, "packed", _quantize, measure.sizes),
    "draft": RecipeStage(DraftSettings, "draft", _draft),
    "export": RecipeStage(ExportSettings, "exported", _export),
    "eval": RecipeStage(CheckpointEval, "eval", measure.evaluate_checkpoints, measure.eval_metrics),
    "draft_eval": RecipeStage(DraftEvalSettings, "draft_eval", measure.evaluate_draft, measure.draft_metrics),
}
"""Stages by section name, in the order they run."""


def require_order(stages: Mapping[str, Any], where: str) -> None:
    """Refuse combinations of stages that cannot run, before any of them does. stages: settings by name; where: the
    recipe, for messages. Raises InputError."""
    if not stages:
        raise InputError(f"{where}: names no stage; add one of {', '.join(STAGES)}")
    quantization = stages.get("quantize")
    reason = quantization.calibration_reason if quantization is not None else None
    if reason is not None and "calibrate" not in stages:
        raise InputError(f"{where}: quantize: {reason} needs a calibration; add a section calibrate")
    if quantization is not None and quantization.effort == QUICK and "calibrate" in stages:
        raise InputError(f"{where}: quantize: effort quick reads no calibration; remove the section calibrate")
    if "calibrate" in stages and quantization is None:
        raise InputError(f"{where}: calibrate: nothing uses it; add a section quantize, or remove it")
    if "draft_eval" in stages and "draft" not in stages:
        raise InputError(f"{where}: draft_eval: there is no draft; add a section draft")
    if "export" in stages:
        _require_exportable(stages, where)
    made = {"model", *(STAGES[name].folder for name in stages)}
    for name in stages["eval"].checkpoints if "eval" in stages else ():
        if name not in made or name not in measure.CHECKPOINTS:
            possible = [folder for folder in measure.CHECKPOINTS if folder in made]
            raise InputError(
                f"{where}: eval.checkpoints: {name} is not made by this recipe; choose from {', '.join(possible)}"
            )


def _require_exportable(stages: Mapping[str, Any], where: str) -> None:
    """Refuse an export that the format cannot hold now, not after hours of work."""
    target, rotation, quantization = stages["export"], stages.get("rotate"), stages.get("quantize")
    if rotation is not None and rotation.method != "none" and rotation.online and not target.online_r4:
        raise InputError(f"{where}: export: {target.to} has no online rotations; set rotate.online to false")
    scheme = target.scheme or (quantization.scheme if quantization is not None else QuantScheme(16, 16, 16))
    match = fit(target_of(target.to), scheme)
    if match.reason is not None:
        raise InputError(
            f"{where}: export: {target.to} cannot hold {scheme.name}: {match.reason}; quantize to {match.instead}"
        )


def metrics_of(stages: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that these stages measure."""
    names = ["packed.bits_per_weight", "packed.bytes"] if "quantize" in stages else []
    if "eval" in stages:
        names += measure.eval_names(stages["eval"])
    return names + (["draft.tau", "draft.identical"] if "draft_eval" in stages else [])
