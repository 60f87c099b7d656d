"""R1 and R2 of a run: drawn, refined where the method asks for it, and kept in the stage's folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.progress import Progress
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.align import aligned, constant_share, gain_signs, mean_share, tap_means
from dfrot.rotation.fuse import Rotations
from dfrot.rotation.hadamard import hadamard_plan, random_orthogonal, randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, broadcast_rows
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.output_error import refine_outputs
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.rotation import ROTATION_FILE, Rotation, load_rotations, save_rotations
from dfrot.rotation.transforms import TRANSFORMS_FILE, Transforms
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage
from dfrot.stages.rotate.collect_outputs import collect_outputs
from dfrot.stages.rotate.collect_rows import collect_rows
from dfrot.stages.rotate.digits import significant
from dfrot.stages.rotate.learn import START_FILE, forget, learn_r1
from dfrot.stages.rotate.plan import RotatePlan
from dfrot.stages.rotate.settings import OUTPUTS, ROWS
from dfrot.tensor_file import load_tensors, save_tensors
from dfrot_kernels.memory import release_memory


def make_rotations(
    stage: Stage, plan: RotatePlan, progress: Progress, ranks: Ranks = SINGLE
) -> tuple[Rotations, dict[str, Any]]:
    """The rotations of `plan`, made or (after an interruption) read from the stage, and the record of how. ranks: share
    the work, and all get the result.

    Raises InputError for a matrix that is not orthogonal."""
    settings, arch = plan.settings, plan.arch
    file = stage.folder / ROTATION_FILE
    if not stage.done("rotation"):
        report: dict[str, Any] = {}
        matrix = None
        if plan.uses_r1:
            matrix, report = _make_r1(stage, plan, progress, ranks)
        if ranks.first:
            rotations: dict[str, Rotation] = {}
            if matrix is not None:
                rotations["R1"] = Rotation(matrix, settings.method, settings.seed)
                report["r1"] = _summary(rotations["R1"], arch.hidden, settings.block)
            draws = [(settings.seed, 1 + layer) for layer in range(arch.n_layers)]
            per_layer = [randomized_hadamard(arch.head_dim, draw, plan.head_block) for draw in draws]
            rotations["R2"] = Rotation(torch.stack(per_layer), "hadamard", settings.seed)
            report["r2"] = _summary(rotations["R2"], arch.head_dim, plan.head_block)
            save_rotations(file, rotations)
        stage.mark("rotation", report)
    if ranks.first and plan.windows.learning is not None:
        forget(stage)
    stored = load_rotations(file)
    r1 = stored["R1"].matrix if "R1" in stored else None
    return Rotations(r1, stored["R2"].matrix, plan.online.r4), stage.recall("rotation")


def _summary(rotation: Rotation, size: int, block: int | None) -> dict[str, Any]:
    """The record of a rotation. `block` below `size`: asked for, or no Hadamard matrix of full width is known.

    Raises InputError for a matrix that is not orthogonal."""
    block = size if rotation.kind == "orthogonal" else hadamard_plan(size, block).block
    return {
        "kind": rotation.kind,
        "seed": rotation.seed,
        "size": size,
        "block": block,
        "orthogonality_error": rotation.require_orthogonal(),
    }


def _make_r1(stage: Stage, plan: RotatePlan, progress: Progress, ranks: Ranks) -> tuple[Tensor | None, dict[str, Any]]:
    """R1 float64 [hidden, hidden] on the first rank, with the record of it. The signs of gains that belong to an
    aligned R1 are written to the folder of `stage`."""
    if plan.windows.learning is None:
        matrix, means, report = _refined_r1(plan, progress, ranks)
    else:
        file = stage.folder / START_FILE
        if not stage.done("start"):
            matrix, means, report = _refined_r1(plan, progress, ranks)
            if ranks.first:
                assert matrix is not None
                save_tensors(file, {"matrix": matrix, **({} if means is None else {"means": means})})
            stage.mark("start", report)
        start = load_tensors(file)
        means = start.get("means")
        matrix, learning = learn_r1(stage, plan, start["matrix"], means, progress, ranks)
        report = {**stage.recall("start"), **learning}
    if ranks.first and means is not None:
        assert matrix is not None
        report["align"]["constant"] = significant(constant_share(matrix, means))
        signs = gain_signs(matrix, means).reshape(plan.arch.n_layers, -1, plan.arch.hidden)
        Transforms(norm=signs).save(stage.folder / TRANSFORMS_FILE)
    return matrix, report


def _refined_r1(
    plan: RotatePlan, progress: Progress, ranks: Ranks
) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
    """R1 float64 [hidden, hidden]: drawn, then aligned and refined where the settings say so, on norm outputs of one
    calibration sample; the means that it is aligned to, float64 [taps, hidden], and the record; on the first rank."""
    settings = plan.settings
    if settings.method == "orthogonal":
        matrix = random_orthogonal(plan.arch.hidden, settings.seed)
    else:
        matrix = randomized_hadamard(plan.arch.hidden, settings.seed, settings.block)
    if plan.windows.rows is None:
        return matrix, None, {}
    if not ranks.first and settings.method != "dfrot":
        return None, None, {}
    runner = BlockRunner(plan.checkpoint, plan.arch)
    report: dict[str, Any] = {}
    rows: CalibrationRows | None = None
    means: Tensor | None = None
    if ranks.first:
        rule = MassiveRule.parse(settings.massive_rule)
        rows = collect_rows(runner, plan.windows.rows, seed=settings.seed, rule=rule, progress=progress)
        release_memory()
        means = tap_means(rows) if settings.align else None
        if means is not None:
            report["align"] = {"mean": significant(mean_share(rows, means))}
            matrix = aligned(matrix, means)
        if settings.method == "dfrot":
            assert plan.windows.decode is not None
            decode = plan.windows.decode
            report["massive"] = rows.report(lambda token: str(decode([token])))
    if settings.method == "dfrot":
        if settings.objective == ROWS:
            matrix = ranks.broadcast(matrix)
            matrix, report["refinement"] = _refined_for_rows(plan, broadcast_rows(rows, ranks), matrix, progress, ranks)
        else:
            del rows
            matrix, report["refinement"] = _refined_for_outputs(plan, runner, matrix, means, progress, ranks)
    return matrix, means, report


def _refined_for_rows(
    plan: RotatePlan, rows: CalibrationRows, start: Tensor, progress: Progress, ranks: Ranks
) -> tuple[Tensor, dict[str, Any]]:
    """The paper's R1 float64 [hidden, hidden], refined from `start` on the rows of one calibration sample, and the
    record of it."""
    result = refine(rows, start, plan.settings.refinement(), progress=progress, ranks=ranks)
    report = {
        "curve": result.curve,
        "accepted": result.accepted,
        "best": result.best,
        "orthogonality_error": result.orthogonality_error,
        **result.stats,
    }
    return result.matrix, report


def _refined_for_outputs(
    plan: RotatePlan, runner: BlockRunner, start: Tensor, means: Tensor | None, progress: Progress, ranks: Ranks
) -> tuple[Tensor, dict[str, Any]]:
    """R1 float64 [hidden, hidden], refined from `start` for the outputs of its readers, and the record of it. start,
    means: those of the first rank count."""
    settings = plan.settings
    assert plan.windows.moments is not None
    taps = collect_outputs(runner, plan.windows.moments, settings.seed, progress, ranks)
    release_memory()

    def signs(matrix: Tensor) -> Tensor:
        return torch.ones(len(taps), len(matrix)) if means is None else gain_signs(matrix.double(), means).float()

    grid = settings.refinement().grid
    result = refine_outputs(taps, start, signs, grid, settings.steps, settings.seed, progress, ranks)
    report = {
        "objective": OUTPUTS,
        "clip": settings.clip,
        "rows": sum(len(tap.rows) for tap in taps),
        "curve": [[step, significant(error, 4)] for step, error in result.curve],
        "best": result.best,
    }
    return result.matrix, report
