"""Making the checkpoints of a comparison: each result once, in a folder named by what decides it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfrot.bench.process_meters import StageMeter
from dfrot.files import digest_json, read_json, write_json
from dfrot.progress import Progress
from dfrot.stage_folder import read_record
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.compare.cells import ComparisonCell, rotate_settings
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.rotate.run import rotate
from dfrot.stages.tune.run import tune


@dataclass(frozen=True)
class MadeCheckpoint:
    """A checkpoint to measure, and what it took to make."""

    folder: Path
    """The checkpoint."""
    extra: dict[str, Any]
    """JSON: `fallbacks`, `seconds` and `peak_memory` by stage, `refinement` of a refined rotation."""


class CheckpointMaker:
    """Makes the checkpoints of cells. Those of an interrupted run are continued."""

    def __init__(self, model: Path, identity: str, work: Path, settings: CompareSettings, progress: Progress) -> None:
        """model: the source checkpoint; identity: its digest; work: the folder for results."""
        self.model, self.identity, self.work, self.settings = model, identity, work, settings
        self.progress = progress

    def make(self, cell: ComparisonCell) -> MadeCheckpoint:
        """Make the checkpoint of a cell, what exists already taken over."""
        folders = self.folders(cell)
        seconds: dict[str, float | None] = {}
        peaks: dict[str, int | None] = {}
        extra: dict[str, Any] = {"seconds": seconds, "peak_memory": peaks}

        def run(kind: str, work: Callable[[Path], object]) -> Path:
            measured = self._measured(folders[kind], work)
            seconds[kind], peaks[kind] = measured["seconds"], measured["peak_memory"]
            return folders[kind]

        progress = self.progress
        source, calibration = self.model, None
        if (rotation := rotate_settings(self.settings, cell)) is not None:
            source = run("rotate", lambda out: rotate(self.model, out, rotation, resume=True, progress=progress))
            extra |= _refinement(source, rotation.seed, rotation.a_bits)
        if (calibrating := cell.calibrate_settings(self.settings)) is not None:
            calibration = run(
                "calibrate", lambda out: calibrate(source, out, calibrating, resume=True, progress=progress)
            )
        quantizing = cell.quantize_settings(self.settings)
        result = quantized = run(
            "quantize", lambda out: quantize(source, calibration, out, quantizing, resume=True, progress=progress)
        )
        extra["fallbacks"] = read_record(quantized, "quantize")["fallbacks"]
        if (tuning := cell.tune_settings(self.settings)) is not None:
            result = run("tune", lambda out: tune(quantized, self.model, out, tuning, resume=True, progress=progress))
        return MadeCheckpoint(result, extra)

    def folders(self, cell: ComparisonCell) -> dict[str, Path]:
        """The folder of every stage of a cell. Cells that ask for the same share it."""
        steps = {
            "rotate": rotate_settings(self.settings, cell),
            "calibrate": cell.calibrate_settings(self.settings),
            "quantize": cell.quantize_settings(self.settings),
            "tune": cell.tune_settings(self.settings),
        }
        chain: list[Any] = [self.identity]
        folders = {}
        for kind, settings in steps.items():
            if settings is not None:
                chain.append([kind, asdict(settings)])
                folders[kind] = self.work / f"{kind}-{digest_json(chain)[:16]}"
        return folders

    def remove(self, cell: ComparisonCell, later: Iterable[ComparisonCell]) -> None:
        """Delete the results of a cell that none of the `later` ones needs."""
        needed = {folder for other in later for folder in self.folders(other).values()}
        for folder in set(self.folders(cell).values()) - needed:
            shutil.rmtree(folder, ignore_errors=True)
            _note(folder).unlink(missing_ok=True)

    def _measured(self, out: Path, work: Callable[[Path], object]) -> dict[str, Any]:
        """Make the folder `out`; returns `seconds` and `peak_memory` (bytes), None for a stage that was interrupted."""
        note = _note(out)
        if out.exists() and note.is_file():
            return dict(read_json(note))
        whole = not out.exists() and not out.with_name(f".{out.name}.partial").exists()
        with StageMeter() as meter:
            work(out)
        measured = {"seconds": meter.seconds if whole else None, "peak_memory": meter.peak_memory if whole else None}
        write_json(note, measured)
        return measured


def _note(folder: Path) -> Path:
    """The file on what making `folder` took."""
    return folder.with_name(f"{folder.name}.json")


def _refinement(rotated: Path, seed: int, a_bits: int) -> dict[str, Any]:
    """{"refinement": its record} of a rotated checkpoint whose rotation was refined for its rows."""
    record = read_record(rotated, "rotate")
    if "common_error" not in record.get("refinement", {}):
        return {}
    refinement = {key: value for key, value in record["refinement"].items() if key != "curve"}
    return {"refinement": {**refinement, "seed": seed, "a_bits": a_bits}}
