"""R1 learned from the predictions of the whole model, once it has been drawn, aligned and refined.

The refinement for outputs weighs an error by what it does to the next linear. What it does to the logits, and how the
errors of all layers add up there, only the model itself can say: KL(16-bit || rounded) of next-token distributions, its
gradient passed straight through the rounding (SpinQuant, arXiv 2405.16406, trains R1 so, on the loss of the text).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.processor import onednn_products
from dfrot.progress import Progress
from dfrot.quant.scheme import FULL, default_sinks
from dfrot.ranks.single import Ranks
from dfrot.rotation.refinement.output_error import cayley
from dfrot.rotation.refinement.polar import orthogonalise
from dfrot.runtime.load import load_model
from dfrot.runtime.turned_model import TurnedModel
from dfrot.stage_folder import Stage
from dfrot.stages.rotate.digits import significant
from dfrot.stages.rotate.plan import RotatePlan
from dfrot.stages.tune.trainer import STATE_FILE, DivergenceTrainer, load_teacher

START_FILE = "start.safetensors"
"""Where learning begins, while it runs: `matrix` float64 [d, d], `means` float64 [taps, d] of an aligned one."""


@onednn_products()
def learn_r1(
    stage: Stage, plan: RotatePlan, start: Tensor, means: Tensor | None, progress: Progress, ranks: Ranks
) -> tuple[Tensor, dict[str, Any]]:
    """R1 float64 [d, d] learned from `start`, and the record of it; on every rank. start, means: as `TurnedModel` takes
    them, on every rank. An interrupted run continues from the state file in the folder of `stage`.

    Raises InputError when a gradient becomes NaN or Inf."""
    learning = plan.windows.learning
    assert learning is not None
    settings, source = plan.settings, plan.checkpoint.path
    sinks = default_sinks(settings.a_bits, FULL, settings.a_sym)
    model = load_model(source, dtype=torch.float32)
    student = TurnedModel(model, plan.arch, start, means, settings.refinement().grid, sinks)
    trainer = DivergenceTrainer(
        stage, student, load_teacher(source), learning.tokens, learning.settings, ranks, setting="learn"
    )
    history = trainer.run(progress)
    turn = ranks.broadcast(trainer.best["skew"] if ranks.first else None)
    best = min(history, key=lambda point: point["divergence"])["step"]
    curve = [[point["step"], significant(point["divergence"], 4)] for point in history]
    matrix = orthogonalise(start @ cayley(turn.double())) if best else start
    return matrix, {"learning": {"curve": curve, "best": best}}


def forget(stage: Stage) -> None:
    """Remove the files of learning, once R1 is kept elsewhere."""
    for name in (START_FILE, STATE_FILE):
        (stage.folder / name).unlink(missing_ok=True)
