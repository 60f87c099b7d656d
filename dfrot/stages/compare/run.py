"""`dfq compare`: every method on one model, measured on the same windows, as one table.

A cell is one row at one scheme and seed. Its checkpoint is made, measured and removed; what was measured stays in the
store, under what decides it, so that an interrupted run continues and a later one measures only what is new.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.arch import Space
from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, UnsupportedError
from dfrot.evaluate.tokens import WindowReader
from dfrot.files import read_json, write_bytes, write_json
from dfrot.inputs import open_described_model
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.stage_folder import open_stage, refuse_inputs, versions
from dfrot.stages.compare.cells import (
    BASELINE,
    ComparisonCell,
    ComparisonGroup,
    comparison_cells,
    comparison_groups,
    rotate_settings,
)
from dfrot.stages.compare.make import CheckpointMaker
from dfrot.stages.compare.markdown import markdown
from dfrot.stages.compare.measure import TextMeter
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.compare.store import CellStore
from dfrot.stages.compare.table import summarise
from dfrot.stages.quantize.plan import plan_quantization
from dfrot.stages.rotate.plan import plan_rotation

KIND = "compare"
REPORT_FILE, TABLE_FILE = "compare.json", "compare.md"
STORE_FOLDER = ".compare"
KERNEL_BITS = 4  # weight bits that the integer kernels are written for; other widths run simulated


@dataclass(frozen=True)
class ComparePlan:
    """Everything that is read and decided before any work."""

    model: Path
    """The source checkpoint."""
    identity: str
    """Digest of its weights and configuration."""
    settings: CompareSettings
    """What was asked for."""
    groups: tuple[ComparisonGroup, ...]
    """What to make, in order."""
    texts: dict[str, Any]
    """Digests of the texts: `calibration`, and the lists `evaluation` and `token_ids`."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the result."""
    resolution: dict[str, list[str]]
    """How the source was read where it left something open."""

    @property
    def cells(self) -> list[ComparisonCell | None]:
        """All cells in the order of work; None is the baseline."""
        return [None, *(cell for group in self.groups for cell in group.cells)]

    def simulated(self, cell: ComparisonCell) -> bool:
        """Whether a cell is measured in floating point, for want of kernels."""
        return cell.quantize_settings(self.settings).scheme.w_bits != KERNEL_BITS

    def decode(self, cell: ComparisonCell) -> int:
        """Tokens of a cell's speed measurement."""
        first_seed = cell.seed in (None, self.settings.seed)
        return self.settings.decode if first_seed and not self.simulated(cell) else 0

    def cell_request(self, cell: ComparisonCell | None) -> dict[str, Any]:
        """What decides the numbers of a cell (None: of the baseline)."""
        measured = {key: getattr(self.settings, key) for key in ("seqlen", "windows", "batch")}
        request: dict[str, Any] = {"model": self.identity, "versions": versions()}
        request |= {key: self.texts[key] for key in ("evaluation", "token_ids")}
        if cell is None:
            return {**request, "measured": {**measured, "decode": self.settings.decode}}
        steps = {
            "rotate": rotate_settings(self.settings, cell),
            "calibrate": cell.calibrate_settings(self.settings),
            "quantize": cell.quantize_settings(self.settings),
            "tune": cell.tune_settings(self.settings),
        }
        # the digest stands for the text, wherever it lies
        made = {
            kind: {key: value for key, value in asdict(settings).items() if key != "dataset"}
            for kind, settings in steps.items()
            if settings is not None
        }
        return {
            **request,
            "calibration": self.texts["calibration"] if len(made) > 1 else None,
            "made": made,
            "measured": {**measured, "simulated": self.simulated(cell), "decode": self.decode(cell)},
        }


def plan_comparison(model: Path, settings: CompareSettings) -> ComparePlan:
    """Open checkpoint folder `model`.

    Raises UnsupportedError for a checkpoint that was rotated or quantized already, that R1 cannot rotate, or that a row
    does not fit."""
    checkpoint, arch = open_described_model(model)
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
    tokenizer = load_tokenizer(model)
    evaluated = [load_text(name, "test", tokenizer) for name in settings.texts]
    texts = {
        "calibration": load_text(settings.dataset, "train", tokenizer).digest,
        "evaluation": [text.digest for text in evaluated],
        "token_ids": [WindowReader(text, settings.seqlen, settings.windows).read(model).digest for text in evaluated],
    }
    _check_texts(settings, texts)
    _check_cells(model, settings)
    identity = checkpoint.digest()
    request = {"model": identity, "settings": asdict(replace(settings, keep=False, store=None))}
    groups = tuple(comparison_groups(settings))
    return ComparePlan(model, identity, settings, groups, texts, request, checkpoint.resolution())


def _check_texts(settings: CompareSettings, texts: dict[str, Any]) -> None:
    """Raise InputError for a further text that is calibrated on, or measured already."""
    for number, name in enumerate(settings.also, 1):
        if texts["evaluation"][number] == texts["calibration"]:
            raise InputError(f"`also` {name}: is the text of the calibration; give another one", field="also")
        if texts["evaluation"][number] in texts["evaluation"][:number]:
            raise InputError(f"`also` {name}: is measured already; give another text", field="also")


def _check_cells(model: Path, settings: CompareSettings) -> None:
    """Raise what the stages would raise hours later for rows that this model cannot have."""
    for rotating in {rotate_settings(settings, cell) for cell in comparison_cells(settings)}:
        if rotating is not None and rotating.transform and rotating.seed == settings.seed:
            plan_rotation(model, rotating)
    # what is written does not depend on the rotation, nor on how it is rounded
    asked = (cell.quantize_settings(settings) for cell in comparison_cells(settings))
    for quantizing in {replace(each, algorithm="rtn", a_clip=None, compensate=None) for each in asked}:
        plan_quantization(model, None, quantizing)


def plan(model: Path, out: Path, settings: CompareSettings) -> dict[str, Any]:
    """What `compare` would do: the number of `cells`, and of those that the store holds already (`stored`).

    Raises what `compare` raises before work starts."""
    planned, store = plan_comparison(model, settings), _store(out, settings)
    stored = [cell for cell in planned.cells if store.has(planned.cell_request(cell))]
    return {"cells": len(planned.cells), "stored": len(stored)}


def _store(out: Path, settings: CompareSettings) -> CellStore:
    """The store of a comparison that is published as `out`."""
    return CellStore(settings.store or out.parent / STORE_FOLDER)


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

    `resume=False` measures everything again, whatever the store holds. Raises what the stages raise; UnsupportedError
    for a checkpoint that was rotated or quantized already.
    """
    refuse_inputs(out, model)
    planned = plan_comparison(model, settings)
    with open_stage(out, KIND, planned.request, resume=resume, overwrite=overwrite) as stage:
        if stage.finished:
            return dict(read_json(out / REPORT_FILE))
        store = _store(out, settings)
        with store.locked():
            measured = _measured_cells(planned, store, resume is False, progress)
        report = summarise(measured, comparison_cells(settings), settings.parsed(), _refinements(planned, measured))
        digest = planned.texts["calibration"]
        same_text = digest == planned.texts["evaluation"][0]
        report["calibration"] = {"name": settings.dataset, "split": "train", "digest": digest, "evaluated": same_text}
        write_json(stage.folder / REPORT_FILE, report)
        write_bytes(stage.folder / TABLE_FILE, markdown(report).encode())
        stage.publish({"report": REPORT_FILE, **planned.resolution})
    return report


def _measured_cells(plan: ComparePlan, store: CellStore, again: bool, progress: Progress) -> dict[str, Any]:
    """Measurements by cell name, the baseline first. again: measure what the store holds, too."""
    cells = plan.cells
    requests = [plan.cell_request(cell) for cell in cells]
    pending = [index for index, request in enumerate(requests) if again or not store.has(request)]
    meter = TextMeter(plan.model, plan.settings, progress)
    maker = CheckpointMaker(plan.model, plan.identity, store.work, plan.settings, progress)
    for count, index in enumerate(pending):
        progress(KIND, count, len(pending))
        cell = cells[index]
        if cell is None:
            store.put(requests[index], meter.baseline())
            continue
        made = maker.make(cell)
        value = meter.checkpoint(made.folder, plan.simulated(cell), plan.decode(cell))
        for key in ("seconds", "peak_memory"):
            value[key] = {**made.extra.pop(key), **value[key]}
        store.put(requests[index], {**value, **made.extra})
        if not plan.settings.keep:
            maker.remove(cell, [later for number in pending[count + 1 :] if (later := cells[number]) is not None])
    progress(KIND, len(pending), len(pending))
    names = [BASELINE if cell is None else cell.name for cell in cells]
    return {name: {**store.get(request), "model": name} for name, request in zip(names, requests)}


def _refinements(plan: ComparePlan, measured: dict[str, Any]) -> dict[str, Any]:
    """Records of the refinements by group name."""
    return {
        group.name: measured[group.cells[0].name]["refinement"]
        for group in plan.groups
        if "refinement" in measured[group.cells[0].name]
    }
