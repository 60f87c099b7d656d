"""`dfq quantize --effort high`: the packed checkpoint is tuned end to end before it is published.

The student is the working folder of the stage, once all of its integers are there; the teacher is the 16-bit checkpoint
that was quantized. What was learned is written over the tensors in place. Until that is done the training state lies
beside them, so a killed run writes the same values again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.calib.calibration import Calibration
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.text import dataset_label, load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.progress import Progress
from dfrot.quant.config import DfqConfig
from dfrot.ranks.single import Ranks
from dfrot.runtime.load import check_folder
from dfrot.stage_folder import Stage
from dfrot.stages.quantize.layout import CheckpointLayout
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.tune.plan import TunePlan, tuning_windows, untunable
from dfrot.stages.tune.settings import TuneSettings
from dfrot.stages.tune.student import load_student
from dfrot.stages.tune.trainer import STATE_FILE, DivergenceTrainer, load_teacher
from dfrot.training_state import load_training
from dfrot.vision.llava_layout import has_vision_part

UNIT = "tuned"


@dataclass(frozen=True)
class EffortTuning:
    """What a quantized checkpoint is tuned on."""

    settings: TuneSettings
    """Steps, windows, rate; the dataset and seed are those of the calibration."""
    tokens: Tensor
    """int64 [held_out + steps * batch, seqlen]: the held-out windows first."""
    text: str
    """Digest of the text."""

    @property
    def label(self) -> dict[str, Any]:
        """The settings as records state them."""
        return {**asdict(self.settings), "dataset": dataset_label(self.settings.dataset)}


def plan_effort(
    checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig, calibration: Calibration, chosen: QuantizeSettings
) -> EffortTuning:
    """Draw the windows to tune on. config: the quantization entry of the result.

    Raises UnsupportedError where gradients do not reach, InputError where the calibration's text cannot be had."""
    reason = "VLMs and mixtures of experts" if has_vision_part(checkpoint.path) else untunable(arch, config)
    if reason is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: {reason} cannot be tuned yet; leave out `effort` high",
            field="effort",
            file=checkpoint.path,
        )
    request = calibration.record["request"]
    calibrated = request.get("settings", {})
    dataset = chosen.tune_dataset or calibrated.get("dataset")
    if not isinstance(dataset, str):
        raise InputError(
            f"{calibration.path}: its record names no text to tune on; give `tune_dataset`",
            field="tune_dataset",
            file=calibration.path,
        )
    steps = {} if chosen.tune_steps is None else {"steps": chosen.tune_steps}
    settings = TuneSettings(dataset=dataset, seed=int(calibrated.get("seed", 0)), **steps).for_scheme(chosen.scheme)
    tokenizer = load_tokenizer(checkpoint.path)
    try:
        text = load_text(dataset, "train", tokenizer)
    except DfqError as error:
        raise InputError(
            f"`effort` high tunes on the dataset {dataset}, which cannot be read ({error}); give `tune_dataset`",
            field="tune_dataset",
        ) from None
    if chosen.tune_dataset is None and request.get("text") not in (None, text.digest):
        raise InputError(
            f"{dataset}: is not the text that {calibration.path} was made on; give `tune_dataset`",
            field="tune_dataset",
            file=calibration.path,
        )
    return EffortTuning(settings, tuning_windows(text, tokenizer, settings), text.digest)


def tune_quantized(
    stage: Stage, layout: CheckpointLayout, tuning: EffortTuning, ranks: Ranks, progress: Progress
) -> dict[str, Any]:
    """Tune the complete packed checkpoint in the working folder of `stage`; returns {"tuning": settings and history}.
    ranks: share the windows, and each holds both models.

    Raises InputError when the gradient becomes NaN or Inf."""
    state = stage.folder / STATE_FILE
    if not stage.done(UNIT):
        ranks.barrier()  # the checkpoint is complete
        packed, _ = check_folder(stage.folder)
        plan = TunePlan(packed, layout.scheme, layout.checkpoint, tuning.settings, tuning.tokens, {})
        student, teacher = load_student(plan), load_teacher(plan.teacher.path)
        history = DivergenceTrainer(stage, student, teacher, plan.tokens, plan.settings, ranks).run(progress)
        stage.mark(UNIT, history)
    if ranks.first and state.is_file():  # else a killed run did everything below
        writer = SafetensorsWriter(stage.folder, layout.plan(), stored=layout.arch.written)
        for name, value in load_training(state)[0]["best"].items():
            writer.write(name, value)
        writer.sync()
        state.unlink()
    return {"tuning": {**tuning.label, "history": stage.recall(UNIT)}}
