"""The key shifts of a run: means of the source's keys on the first windows of the calibration, rotated by R3.

They are computed in a pass of their own, before any weight is rounded, and kept in the stage's folder until it is
published, so that an interrupted run goes on with the same numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfrot.calib.key_means import key_means
from dfrot.progress import Progress
from dfrot.quant.key_shift import key_shift_name
from dfrot.ranks.single import Ranks
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage
from dfrot.stages.quantize.plan import QuantizePlan
from dfrot.tensor_file import load_tensors, save_tensors

FILE = "key-shift.safetensors"
UNIT = "key-shift"


def make_key_shifts(stage: Stage, plan: QuantizePlan, ranks: Ranks, progress: Progress) -> dict[str, Tensor]:
    """The tensors float32 [kv heads, head_dim] of every layer by full name; empty where keys are not shifted."""
    if not plan.config.shifts_keys:
        return {}
    file = stage.folder / FILE
    if not stage.done(UNIT):
        if ranks.first:
            _write(file, plan, progress)
        stage.mark(UNIT)
    return load_tensors(file)


def _write(file: Path, plan: QuantizePlan, progress: Progress) -> None:
    assert plan.calibration is not None
    runner = BlockRunner(plan.checkpoint, plan.arch)
    means = key_means(runner, plan.calibration.tokens(), plan.config.sink_tokens, progress)
    r3 = plan.config.online.r3
    shifts = (means if r3 is None else r3.apply(means)).to(torch.float32)
    save_tensors(file, {key_shift_name(plan.arch, layer): shift.clone() for layer, shift in enumerate(shifts)})


def remove_key_shifts(folder: Path) -> None:
    """Delete the file: the checkpoint has the tensors now."""
    (folder / FILE).unlink(missing_ok=True)
