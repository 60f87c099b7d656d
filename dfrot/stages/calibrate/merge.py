"""Several calibrations of one checkpoint as a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.calib import calibration as store
from dfrot.errors import InputError, MismatchError
from dfrot.files import require_free_space
from dfrot.inputs import open_described_model
from dfrot.progress import Progress, silent
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.stages.calibrate.plan import calibration_bytes
from dfrot.stages.calibrate.run import KIND


def merge(
    model: Path,
    parts: list[Path],
    out: Path,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the calibrations `parts`, all made on `model`, as one: as if their samples had been run together
    (the percentiles and clip ratios come from the union of the samples).

    Raises MismatchError when they belong to other checkpoints, differ in sequence length, or one is given twice.
    """
    if len(parts) < 2:
        raise InputError("merging calibrations needs two or more of them")
    refuse_inputs(out, model, *parts)
    checkpoint, arch = open_described_model(model)
    digest = checkpoint.digest()
    calibrations = [store.Calibration.open(path, arch, digest) for path in parts]
    batches = [calibration.tokens() for calibration in calibrations]
    if len({batch.shape[1] for batch in batches}) > 1:
        raise MismatchError("calibrations of different `seqlen` cannot be merged", field="seqlen")
    if len({store.tokens_digest(batch) for batch in batches}) < len(parts):
        raise MismatchError(
            "the same tokens were calibrated twice; merge calibrations with different `seed`", field="seed"
        )
    tokens = torch.cat(batches)
    request = {
        "model": digest,
        "tokens": store.tokens_digest(tokens),
        "merged": [calibration.record["request"] for calibration in calibrations],
    }
    require_free_space(out.parent, calibration_bytes(arch, tokens, True))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            store.save_tensors(stage.folder, "tokens", {"tokens": tokens})
            summary: dict[str, Any] = {}
            stems = store.file_stems(arch)
            for number, stem in enumerate(stems):
                progress("merge", number, len(stems))
                merged = calibrations[0].stats(stem)
                for other in calibrations[1:]:
                    others = other.stats(stem)
                    merged = {tap: stats.merge(others[tap]) for tap, stats in merged.items()}
                store.save_stats(stage.folder, stem, merged)
                for tap, stats in merged.items():
                    summary[tap if stem == store.HEAD else arch.full(number, tap)] = stats.summary()
            stage.publish({"taps": summary})
    return read_record(out, KIND)
