"""`dfq tune`: scales and norm gains of a packed model, fitted end to end to the predictions of the 16-bit one.

GPTQ quantizes every linear by itself. How the remaining errors of all linears, of activations and of the cache add up
in the logits shows at the end only. The integers stay; the scales of the weights (as in EfficientQAT's second phase,
arXiv 2407.11062) and the gains of the norms (as in norm tweaking, arXiv 2309.02784) are trained by gradient descent on
the divergence KL(16-bit || quantized) of next-token distributions, with activations and KV rounded as they will be
served, sink tokens exact. The result is a checkpoint of the same form, size and speed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.files import require_free_space
from dfrot.lineage import lineage, source_record
from dfrot.outliers.fixes.base import Change
from dfrot.outliers.rewrite import rewrite
from dfrot.processor import onednn_products
from dfrot.progress import Progress, silent
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.stage_folder import read_record, refuse_inputs
from dfrot.stages.tune.plan import plan_tuning
from dfrot.stages.tune.settings import TuneSettings
from dfrot.stages.tune.student import load_student
from dfrot.stages.tune.trainer import STATE_FILE, DivergenceTrainer, load_teacher

KIND = "tune"


@onednn_products()
def tune(
    model: Path,
    teacher: Path,
    out: Path,
    settings: TuneSettings,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish packed checkpoint `model`, tuned towards the 16-bit checkpoint `teacher` that it was made from (rotated
    or not), as the folder `out`; returns its `stage.json`. Both models are in memory.

    ranks: processes that share the work, each calling this with the same arguments; the bytes do not depend on them.
    Raises InputError, UnsupportedError or MismatchError, in one line, before any work."""
    refuse_inputs(out, model, teacher)
    plan = plan_tuning(model, teacher, settings)
    require_free_space(out.parent, plan.nbytes)
    with open_shared_stage(ranks, out, KIND, plan.request, resume, overwrite) as stage:
        if not stage.finished:
            student, exact = load_student(plan), load_teacher(plan.teacher.path)
            trainer = DivergenceTrainer(stage, student, exact, plan.tokens, plan.settings, ranks)
            history = trainer.run(progress)
            if ranks.first:
                change = Change({name: [_replace_by(value)] for name, value in trainer.best.items()})
                rewrite(plan.student, stage.folder, change)
                (stage.folder / STATE_FILE).unlink(missing_ok=True)
            record = {"scheme": plan.scheme.name, "history": history, "linears": len(student.linears)}
            stage.publish(
                {**record, **source_record(model), "lineage": {**lineage(model), "tuning": plan.request["settings"]}}
            )
    return read_record(out, KIND)


def _replace_by(value: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit that replaces a tensor by `value`."""
    return lambda _: value
