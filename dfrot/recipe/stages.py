"""The stages that a recipe can name: settings, what each needs and makes, and the library function behind it.

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
from dfrot.recipe.measure import CheckpointEval
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.draft.settings import DraftEvalSettings as DraftEvalSettings
from dfrot.stages.draft.settings import DraftSettings
from dfrot.stages.draft.train import train as train_draft
from dfrot.stages.outliers.fix import fix
from dfrot.stages.outliers.settings import FixSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Folders = Mapping[str, Path]
"""What there is so far, by name: `model` and the folders of the stages that ran."""


@dataclass(frozen=True)
class StageRow:
    """folder: what the stage makes, under this name in the run folder. run(folders, settings, out, **stage options):
    returns the stage's evidence. metrics(evidence): numbers by name."""

    settings: type[Any]
    folder: str
    run: Callable[..., dict[str, Any]]
    metrics: Callable[[Mapping[str, Any]], dict[str, float]] = lambda evidence: {}


def source(folders: Folders) -> Path:
    """The 16-bit checkpoint that comes next: rotated, else fixed, else the model itself."""
    return next(folders[name] for name in ("rotated", "fixed", "model") if name in folders)


def final(folders: Folders) -> Path:
    """The checkpoint that is the result so far."""
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


STAGES: dict[str, StageRow] = {
    "outliers_fix": StageRow(FixSettings, "fixed", _fix),
    "rotate": StageRow(RotateSettings, "rotated", _rotate),
    "calibrate": StageRow(CalibrateSettings, "calibration", _calibrate),
    "quantize": StageRow(QuantizeSettings, "packed", _quantize, measure.sizes),
    "draft": StageRow(DraftSettings, "draft", _draft),
    "export": StageRow(ExportSettings, "exported", _export),
    "eval": StageRow(CheckpointEval, "eval", measure.evaluate_checkpoints, measure.eval_metrics),
    "draft_eval": StageRow(DraftEvalSettings, "draft_eval", measure.evaluate_draft, measure.draft_metrics),
}
"""By section name, in the order they run."""


def require_order(stages: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot run, before anything does."""
    if not stages:
        raise InputError(f"{where}: names no stage; add one of {', '.join(STAGES)}")
    quantization = stages.get("quantize")
    if quantization is not None and quantization.needs_calibration() and "calibrate" not in stages:
        raise InputError(f"{where}: quantize: {quantization.algorithm} needs a calibration; add a section calibrate")
    if "calibrate" in stages and quantization is None:
        raise InputError(f"{where}: calibrate: nothing uses it; add a section quantize, or remove it")
    if "draft_eval" in stages and "draft" not in stages:
        raise InputError(f"{where}: draft_eval: there is no draft; add a section draft")
    if "export" in stages:
        _require_exportable(stages, where)
    made = {"model", *(STAGES[name].folder for name in stages)}
    for name in stages["eval"].checkpoints if "eval" in stages else ():
        if name not in made or name not in measure.CHECKPOINTS:
            there = [one for one in measure.CHECKPOINTS if one in made]
            raise InputError(f"{where}: eval.checkpoints: {name} is not made here; choose of {', '.join(there)}")


def _require_exportable(stages: Mapping[str, Any], where: str) -> None:
    """What the format cannot hold is known now, not after hours of work."""
    wanted, rotation, quantization = stages["export"], stages.get("rotate"), stages.get("quantize")
    if rotation is not None and rotation.method != "none" and rotation.online and not wanted.online_r4:
        raise InputError(f"{where}: export: {wanted.to} has no online rotations; set rotate.online to false")
    scheme = wanted.scheme or (quantization.scheme if quantization is not None else QuantScheme(16, 16, 16))
    found = fit(target_of(wanted.to), scheme)
    if found.reason is not None:
        raise InputError(
            f"{where}: export: {wanted.to} cannot hold {scheme.name}: {found.reason}; quantize to {found.instead}"
        )


def metrics_of(stages: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that these stages measure."""
    found = ["packed.bits_per_weight", "packed.bytes"] if "quantize" in stages else []
    if "eval" in stages:
        found += measure.eval_names(stages["eval"])
    return found + (["draft.tau", "draft.identical"] if "draft_eval" in stages else [])
