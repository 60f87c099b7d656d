"""The transforms of a run: solved block by block from the source checkpoint, and kept in the stage's folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from dfrot.progress import Progress
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.transforms import TRANSFORMS_FILE, Transforms
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage
from dfrot.stages.rotate.digits import significant
from dfrot.stages.rotate.plan import RotatePlan
from dfrot.transforms.base import BlockMaps, BlockView, stacked
from dfrot.transforms.moments import BlockMoments, visit_blocks


def make_transforms(
    stage: Stage, plan: RotatePlan, progress: Progress, ranks: Ranks = SINGLE
) -> tuple[Transforms, dict[str, Any]]:
    """The transforms of `plan`, solved or (after an interruption) read from the stage, and the record of them; with the
    signs of gains that belong to an aligned R1. ranks: share the work, and all get the result."""
    file = stage.folder / TRANSFORMS_FILE
    signs = Transforms.load(file).norm if plan.settings.align else None
    if not plan.transforms:
        return Transforms(norm=signs), {}
    if not stage.done("transforms"):
        assert plan.windows.moments is not None
        solved: dict[int, list[Any]] = {}  # layer -> its maps, and the record of each transform

        def solve(layer: int, block: nn.Module, moments: BlockMoments) -> None:
            view, maps = BlockView(plan.arch, block, moments), BlockMaps()
            records = [significant(transform.solve(view, maps, mode)) for transform, mode in plan.transforms]
            solved[layer] = [vars(maps), records]

        norms = any("norm" in transform.fills for transform, _ in plan.transforms)
        visit_blocks(BlockRunner(plan.checkpoint, plan.arch), plan.windows.moments, solve, progress, ranks, norms)
        layers = [item for _, item in sorted(item for part in ranks.gather(solved) for item in part.items())]
        report: dict[str, Any] = {}
        if ranks.first:
            maps = stacked([BlockMaps(**maps) for maps, _ in layers])
            (maps if signs is None else replace(maps, norm=signs)).save(file)
            for number, (transform, mode) in enumerate(plan.transforms):
                report[transform.name] = {"mode": mode, "layers": [records[number] for _, records in layers]}
        stage.mark("transforms", report)
    return Transforms.load(file), {"transforms": stage.recall("transforms")}
