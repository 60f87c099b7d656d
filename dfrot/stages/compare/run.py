"""`dfq compare`: every method on one model, measured on the same windows, as one table.

A cell is one way to make a checkpoint: rotation, seed, scheme and algorithm. Cells of one seed share the rotation
and its calibration. A cell is the unit of resumption; its checkpoint is evaluated and removed, its loss per window
stays, because every interval here is paired over windows.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.arch import Space, open_described
from dfrot.errors import UnsupportedError
from dfrot.files import read_json, write_bytes, write_json
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.stage_folder import Stage, open_stage
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.compare.cells import BASELINE, TUNED, ComparisonCell, ComparisonGroup, comparison_groups
from dfrot.stages.compare.markdown import markdown
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.compare.table import summarise
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.tune.run import tune
from dfrot.stages.tune.settings import TuneSettings

KIND = "compare"
REPORT_FILE, TABLE_FILE = "compare.json", "compare.md"
KERNEL_BITS = 4  # weight bits that the integer kernels are written for; other widths run simulated


@dataclass(frozen=True)
class ComparePlan:
    """Everything that is read and decided before any work."""

    model: Path
    """The source checkpoint."""
    settings: CompareSettings
    """What was asked for."""
    groups: tuple[ComparisonGroup, ...]
    """What to make, in order."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the bytes of the result."""
    resolution: dict[str, list[str]]
    """How the source was read where it left something open."""

    @property
    def cells(self) -> int:
        """Number of cells, the baseline included."""
        return 1 + sum(len(group.cells) for group in self.groups)


def plan_comparison(model: Path, settings: CompareSettings) -> ComparePlan:
    """Open checkpoint folder `model`.

    Raises UnsupportedError for a checkpoint that was rotated or quantized already, or that R1 cannot rotate."""
    checkpoint, arch = open_described(model)
    config_file = str(checkpoint.path / "config.json")
    if DfqConfig.of(checkpoint.config, config_file) is not None:
        raise UnsupportedError(
            f"{config_file}: is rotated (or quantized) by dfq already; start from the original checkpoint",
            file=config_file,
        )
    if reason := arch.spec.refuses(Space.RESIDUAL):
        raise UnsupportedError(
            f"{config_file}: {reason}; dfq compare is about methods of R1, dfq rotate with method hadamard gives this "
            "model the other rotations",
            file=config_file,
        )
    request = {"model": checkpoint.digest(), "settings": asdict(replace(settings, keep=False))}
    return ComparePlan(model, settings, tuple(comparison_groups(settings)), request, checkpoint.resolution())


def compare(
    model: Path,
    out: Path,
    settings: CompareSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the comparison of all methods on checkpoint `model` as the folder `out`; returns `compare.json`.

    Raises what the stages raise; UnsupportedError for a checkpoint that was rotated or quantized already.
    """
    plan = plan_comparison(model, settings)
    with open_stage(out, KIND, plan.request, resume=resume, overwrite=overwrite) as stage:
        if stage.finished:
            return dict(read_json(out / REPORT_FILE))
        comparison = _ComparisonRun(stage, plan)
        report = summarise(comparison.run(progress), settings.parsed(), comparison.refinements())
        write_json(stage.folder / REPORT_FILE, report)
        write_bytes(stage.folder / TABLE_FILE, markdown(report).encode())
        if not settings.keep:
            shutil.rmtree(comparison.folder, ignore_errors=True)
        stage.publish({"report": REPORT_FILE, **plan.resolution})
    return report


class _ComparisonRun:
    """All cells, those of the journal not made again; checkpoints lie in the folder `work` of the stage."""

    def __init__(self, stage: Stage, plan: ComparePlan) -> None:
        self.stage, self.plan, self.settings = stage, plan, plan.settings
        self.folder = stage.folder / "work"
        self.folder.mkdir(exist_ok=True)
        self.schemes = plan.settings.parsed()

    def run(self, progress: Progress) -> dict[str, Any]:
        """Measurements by cell name, the baseline first."""
        total, done = self.plan.cells, 0
        progress(KIND, done, total)
        results = {BASELINE: self._measure(BASELINE, self.plan.model, False, self.settings.decode)}
        for group in self.plan.groups:
            for cell in group.cells:
                done += 1
                progress(KIND, done, total)
                if not self.stage.done(cell.name):
                    self._make(group, cell)
                results[cell.name] = self.stage.recall(cell.name)
            if not self.settings.keep:
                for path in (self.folder / group.name, *self.folder.glob(f"{group.name}.*")):
                    shutil.rmtree(path, ignore_errors=True)
        progress(KIND, total, total)
        return results

    def refinements(self) -> dict[str, Any]:
        """Records of the refinements by group name."""
        units = {group.name: f"rotation {group.name}" for group in self.plan.groups}
        return {name: self.stage.recall(unit) for name, unit in units.items() if self.stage.done(unit)}

    def _make(self, group: ComparisonGroup, cell: ComparisonCell) -> None:
        """Make the checkpoint of a cell and measure it."""
        rotated = self._rotate(group)
        scheme = self.schemes[cell.scheme]
        calibration = self._calibrate(group, rotated) if cell.algorithm != "rtn" else None
        tuned = cell.algorithm == TUNED[0]
        quantized = self.folder / f"{group.name}.{replace(cell, algorithm='gptq').name if tuned else cell.name}"
        settings = QuantizeSettings(scheme=scheme, algorithm="gptq" if tuned else cell.algorithm)
        record = quantize(rotated, calibration, quantized, settings, resume=True)
        if tuned:
            quantized = self._tune(quantized, self.folder / f"{group.name}.{cell.name}", cell)
        first_seed = cell.seed in (None, self.settings.seed)
        simulated = scheme.w_bits != KERNEL_BITS
        decode = self.settings.decode if first_seed and not simulated else 0
        self._measure(cell.name, quantized, simulated, decode, fallbacks=record["fallbacks"])
        if not self.settings.keep and not (self.settings.tune and cell.algorithm == "gptq"):
            shutil.rmtree(quantized, ignore_errors=True)

    def _tune(self, quantized: Path, out: Path, cell: ComparisonCell) -> Path:
        """The tuned checkpoint of a quantized one."""
        settings = TuneSettings(
            dataset=self.settings.dataset,
            steps=self.settings.tune,
            seqlen=min(TuneSettings.seqlen, self.settings.calibration_seqlen),
            seed=cell.seed or 0,
        )
        tune(quantized, self.plan.model, out, settings, resume=True)
        return out

    def _rotate(self, group: ComparisonGroup) -> Path:
        """The rotated checkpoint of a group; the record of its refinement goes into the journal."""
        if group.settings is None:
            return self.plan.model
        folder = self.folder / group.name
        record = rotate(self.plan.model, folder, group.settings, resume=True)
        unit = f"rotation {group.name}"
        if "refinement" in record and not self.stage.done(unit):
            refinement = {key: value for key, value in record["refinement"].items() if key != "curve"}
            self.stage.mark(unit, {**refinement, "seed": group.settings.seed, "a_bits": group.settings.a_bits})
        return folder

    def _calibrate(self, group: ComparisonGroup, rotated: Path) -> Path:
        """The calibration of a group's rotated checkpoint."""
        folder = self.folder / f"{group.name}.calibration"
        settings = CalibrateSettings(
            dataset=self.settings.dataset,
            samples=self.settings.samples,
            seqlen=self.settings.calibration_seqlen,
            seed=self.settings.seed if group.settings is None else group.settings.seed,
            hessians=False,
            statistics=False,  # GPTQ collects its own while errors propagate
        )
        calibrate(rotated, folder, settings, resume=True)
        return folder

    def _measure(self, name: str, folder: Path, simulated: bool, decode: int, **extra: Any) -> dict[str, Any]:
        """The measurements of cell `name`, with the entries of `extra`, made unless the journal holds them."""
        if not self.stage.done(name):
            settings = PerplexitySettings(
                dataset=self.settings.dataset,
                seqlen=self.settings.seqlen,
                windows=self.settings.windows,
                batch=self.settings.batch,
                fake=simulated,
                decode=decode,
            )
            report = evaluate([folder], settings)
            self.stage.mark(name, {**report["results"][0], "model": name, "dataset": report["dataset"], **extra})
        return dict(self.stage.recall(name))
