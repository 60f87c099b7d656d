"""`dfq compare`: every method on one model, measured on the same windows, as one table.

A cell is one way to make a checkpoint: rotation, seed, scheme and algorithm. Cells of one seed share the rotation
and its calibration. A cell is the unit of resumption; its checkpoint is evaluated and removed, its loss per window
stays, because every interval here is paired over windows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.arch import open_described
from dfrot.errors import UnsupportedError
from dfrot.files import write_bytes, write_json
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.stage_folder import Stage, open_stage
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.compare.table import markdown, summarise
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.tune.run import tune
from dfrot.stages.tune.settings import TuneSettings

KIND = "compare"
REPORT, TABLE = "compare.json", "compare.md"
BASELINE = "bf16"
METHODS = (
    ("rtn", "none"),
    ("rtn", "orthogonal"),
    ("rtn", "hadamard"),
    ("rtn", "dfrot"),
    ("gptq", "hadamard"),
    ("gptq", "dfrot"),
)
"""(algorithm, rotation) of every row below the baseline."""
TUNED = ("tuned", "dfrot")  # GPTQ, then dfq tune


@dataclass(frozen=True)
class ComparisonCell:
    """One checkpoint to make and measure; `seed` None where nothing is random."""

    scheme: str
    algorithm: str
    rotation: str
    seed: int | None

    @property
    def name(self) -> str:
        return f"{self.scheme}-{self.algorithm}-{self.rotation}" + ("" if self.seed is None else f"-{self.seed}")


@dataclass(frozen=True)
class ComparisonGroup:
    """Cells that share one rotated checkpoint."""

    settings: RotateSettings | None
    cells: tuple[ComparisonCell, ...]
    name: str


def comparison_groups(settings: CompareSettings) -> Iterator[ComparisonGroup]:
    """Rotations in the order of the table. The refined one knows the activation quantizer, so schemes that differ
    there cannot share it; the others are blind to the scheme."""
    schemes = settings.parsed()
    for rotation in ("none", "orthogonal", "hadamard", "dfrot"):
        methods = (*METHODS, TUNED) if settings.tune else METHODS
        algorithms = [algorithm for algorithm, given in methods if given == rotation]
        for seed in [None] if rotation == "none" else range(settings.seed, settings.seed + settings.seeds):
            shared: dict[tuple[Any, ...], list[str]] = {}
            for name, scheme in schemes.items():
                key = (scheme.a_bits, scheme.a_sym, scheme.a_clip) if rotation == "dfrot" else ()
                shared.setdefault(key, []).append(name)
            for names in shared.values():
                scheme = schemes[names[0]]
                made = None
                if seed is not None:
                    made = RotateSettings(
                        method=rotation,
                        dataset=settings.dataset,
                        seqlen=settings.refine_seqlen,
                        seed=seed,
                        gamma=settings.gamma,
                        a_bits=scheme.a_bits,
                        a_sym=scheme.a_sym,
                        a_clip=scheme.a_clip,
                    )
                cells = [ComparisonCell(name, algorithm, rotation, seed) for name in names for algorithm in algorithms]
                yield ComparisonGroup(
                    made, tuple(cells), "-".join([rotation, *([] if seed is None else [str(seed)]), *names])
                )


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
    checkpoint, arch = open_described(model)
    where = str(checkpoint.path / "config.json")
    if DfqConfig.of(checkpoint.config, where) is not None:
        raise UnsupportedError(f"{where}: is rotated (or quantized) by dfq already; start from the original checkpoint")
    if reason := arch.spec.refuses("residual"):
        raise UnsupportedError(
            f"{where}: {reason}; dfq compare is about methods of R1, dfq rotate --method hadamard gives this model "
            "the other rotations"
        )
    request = {"model": checkpoint.digest(), "settings": asdict(replace(settings, keep=False))}
    with open_stage(out, KIND, request, resume=resume, overwrite=overwrite) as stage:
        if stage.finished:
            from dfrot.files import read_json

            return dict(read_json(out / REPORT))
        work = _Work(stage, model, settings)
        report = summarise(work.all(progress), settings.parsed(), work.rotations())
        write_json(stage.folder / REPORT, report)
        write_bytes(stage.folder / TABLE, markdown(report).encode())
        if not settings.keep:
            shutil.rmtree(work.folder, ignore_errors=True)
        stage.publish({"report": REPORT})
    return report


class _Work:
    """All cells of one comparison, those of the journal taken over."""

    def __init__(self, stage: Stage, model: Path, settings: CompareSettings) -> None:
        self.stage, self.model, self.settings = stage, model, settings
        self.folder = stage.folder / "work"
        self.folder.mkdir(exist_ok=True)
        self.schemes = settings.parsed()

    def all(self, progress: Progress) -> dict[str, Any]:
        """Measurements by cell name, the baseline first."""
        found = list(comparison_groups(self.settings))
        total, done = 1 + sum(len(group.cells) for group in found), 0
        progress(KIND, done, total)
        results = {BASELINE: self._measured(BASELINE, self.model, False, self.settings.decode)}
        for group in found:
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

    def rotations(self) -> dict[str, Any]:
        """What the refinements report, by group name."""
        names = (f"rotation {group.name}" for group in comparison_groups(self.settings))
        return {name.removeprefix("rotation "): self.stage.recall(name) for name in names if self.stage.done(name)}

    def _make(self, group: ComparisonGroup, cell: ComparisonCell) -> None:
        rotated = self._rotated(group)
        scheme = self.schemes[cell.scheme]
        calibration = self._calibrated(group, rotated) if cell.algorithm != "rtn" else None
        tuned = cell.algorithm == TUNED[0]
        quantized = self.folder / f"{group.name}.{replace(cell, algorithm='gptq').name if tuned else cell.name}"
        wanted = QuantizeSettings(scheme=scheme, algorithm="gptq" if tuned else cell.algorithm)
        made = quantize(rotated, calibration, quantized, wanted, resume=True)
        if tuned:
            quantized = self._tuned(quantized, self.folder / f"{group.name}.{cell.name}", cell)
        first = cell.seed in (None, self.settings.seed)
        # the integer kernels are written for 4-bit weights; other widths run as their simulated twins
        simulated = scheme.w_bits != 4
        decode = self.settings.decode if first and not simulated else 0
        self._measured(cell.name, quantized, simulated, decode, fallbacks=made["fallbacks"])
        if not self.settings.keep and not (self.settings.tune and cell.algorithm == "gptq"):
            shutil.rmtree(quantized, ignore_errors=True)

    def _tuned(self, quantized: Path, out: Path, cell: ComparisonCell) -> Path:
        wanted = TuneSettings(
            dataset=self.settings.dataset,
            steps=self.settings.tune,
            seqlen=min(TuneSettings.seqlen, self.settings.calibration_seqlen),
            seed=cell.seed or 0,
        )
        tune(quantized, self.model, out, wanted, resume=True)
        return out

    def _rotated(self, group: ComparisonGroup) -> Path:
        if group.settings is None:
            return self.model
        folder = self.folder / group.name
        evidence = rotate(self.model, folder, group.settings, resume=True)
        unit = f"rotation {group.name}"
        if "refinement" in evidence and not self.stage.done(unit):
            kept = {key: value for key, value in evidence["refinement"].items() if key != "curve"}
            self.stage.mark(unit, {**kept, "seed": group.settings.seed, "a_bits": group.settings.a_bits})
        return folder

    def _calibrated(self, group: ComparisonGroup, rotated: Path) -> Path:
        folder = self.folder / f"{group.name}.calibration"
        wanted = CalibrateSettings(
            dataset=self.settings.dataset,
            samples=self.settings.samples,
            seqlen=self.settings.calibration_seqlen,
            seed=self.settings.seed if group.settings is None else group.settings.seed,
            hessians=False,
            statistics=False,  # GPTQ collects its own while errors propagate
        )
        calibrate(rotated, folder, wanted, resume=True)
        return folder

    def _measured(self, name: str, folder: Path, simulated: bool, decode: int, **more: Any) -> dict[str, Any]:
        if not self.stage.done(name):
            wanted = PerplexitySettings(
                dataset=self.settings.dataset,
                seqlen=self.settings.seqlen,
                windows=self.settings.windows,
                batch=self.settings.batch,
                fake=simulated,
                decode=decode,
            )
            report = evaluate([folder], wanted)
            result = {**report["results"][0], "model": name, "dataset": report["dataset"], **more}
            self.stage.mark(name, result)
        return dict(self.stage.recall(name))
