"""`dfq tune`: the scales and norm gains of a packed model, fitted end to end to what the 16-bit model says.

GPTQ settles every linear by itself. What is left, how the errors of all linears, of activations and of the cache add up
in the logits, is seen at the end only. The integers stay; the scales of the weights (as in EfficientQAT's second phase,
arXiv 2407.11062) and the gains of the norms (as in norm tweaking, arXiv 2309.02784) learn by gradient from the
divergence KL(16-bit || quantized) of next-token distributions, with activations and KV rounded as they will be served.
The result is a checkpoint of the same form, size and speed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import calibration_windows, load_text
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.draft.training.optim import AdamW, rate
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import require_free_space
from dfrot.lineage import lineage
from dfrot.outliers.fixes.base import Change
from dfrot.outliers.rewrite import rewrite
from dfrot.processor import fast_bfloat16
from dfrot.quant.config import DfqConfig
from dfrot.runtime.load import check_folder, load_model
from dfrot.runtime.trainable import TrainableModel
from dfrot.stage_folder import Progress, Stage, open_stage, read_record, silent
from dfrot.stages.tune.settings import TuneSettings
from dfrot.training_state import load_training, save_training
from dfrot.vision import carry as vision

KIND = "tune"
STATE = "state.safetensors"
APART = 1_000_003  # added to the seed: windows of a calibration with the same one are fitted already and judge nothing


def tune(
    model: Path,
    teacher: Path,
    out: Path,
    settings: TuneSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish packed checkpoint `model`, tuned towards the 16-bit checkpoint `teacher` that it was made from (rotated
    or not), as the folder `out`; returns its `stage.json`. The whole model and its gradients are in memory.

    Raises InputError, UnsupportedError or MismatchError, in one line, before any work."""
    checkpoint, config = _student(model)
    reference, plain = check_folder(teacher)
    if plain is not None and plain.scheme is not None:
        raise InputError(f"{teacher}: is quantized itself; give the 16-bit checkpoint as --teacher")
    vocab = describe(checkpoint.config).sizes["vocab"]
    if describe(reference.config).sizes["vocab"] != vocab:
        raise MismatchError(
            f"{teacher}: has another vocabulary than {model}; give the checkpoint that it was made from"
        )
    text = load_text(settings.dataset, "train")
    ids = encode(load_tokenizer(checkpoint.path), text.text)
    count = settings.steps * settings.batch + settings.held_out
    tokens = calibration_windows(ids, count, settings.seqlen, settings.seed + APART)
    name = settings.dataset if not Path(settings.dataset).exists() else Path(settings.dataset).name
    request = {
        "model": checkpoint.digest(),
        "teacher": reference.digest(),
        "text": text.digest,
        "settings": {**asdict(settings), "dataset": name},
    }
    nbytes = sum(entry.end - entry.start for entry in checkpoint.entries.values())
    require_free_space(out.parent, nbytes)
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            trainer = _Trainer(stage, checkpoint, reference, settings, tokens)
            history = trainer.run(progress)
            rewrite(
                checkpoint, stage.folder, Change({name: [_constant(value)] for name, value in trainer.best.items()})
            )
            (stage.folder / STATE).unlink(missing_ok=True)
            evidence = {"scheme": _scheme(config), "history": history, "linears": len(trainer.student.linears)}
            stage.publish({**evidence, "lineage": {**lineage(model), "tuning": request["settings"]}})
    return read_record(out, KIND)


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit that puts `value` in place of a tensor."""
    return lambda _: value


def _scheme(config: DfqConfig) -> str:
    assert config.scheme is not None
    return config.scheme.name


def _student(model: Path) -> tuple[Checkpoint, DfqConfig]:
    """The packed checkpoint, refused where gradients do not reach."""
    vision.refuse_vision_part(model, "the tuned checkpoint")
    checkpoint, config = check_folder(model)
    if config is None or config.scheme is None or config.fake:
        raise InputError(f"{model}: is no packed checkpoint; quantize first, without --fake")
    arch = describe(checkpoint.config)
    reason = None
    if arch.wrapper is not None or arch.spec.experts is not None:
        reason = "models that see and mixtures of experts"
    elif arch.spec.scalars.attention_cap:
        reason = "models with capped attention"
    elif config.sink_tokens or config.resets:
        reason = "sink tokens and resets"
    if reason is not None:
        raise UnsupportedError(f"{model}: {reason} cannot be tuned yet; serve the checkpoint as it is")
    return checkpoint, config


class _Trainer:
    """One run. A step depends on its number and the state before it alone: a killed run ends in the same bytes."""

    def __init__(
        self, stage: Stage, model: Checkpoint, teacher: Checkpoint, settings: TuneSettings, tokens: Tensor
    ) -> None:
        self.stage, self.settings = stage, settings
        self.held, self.tokens = tokens[: settings.held_out], tokens[settings.held_out :]
        arch = describe(model.config)
        stored = model.entry(f"{arch.spec.final_norm.name}.weight").dtype
        self.student = TrainableModel(load_model(model.path, dtype=torch.float32), arch, stored)
        self.teacher = load_model(teacher.path, dtype=torch.float32)
        self.optimizer = AdamW(self.student.parameters, 0.0, 1.0)
        self.fast = fast_bfloat16()
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> list[dict[str, float]]:
        s = self.settings
        every = max(1, -(-s.steps // s.evaluations))
        begin = self._resume()
        if not self.history:
            self._evaluate(0)
        for step in range(begin, s.steps):
            progress("tune", step, s.steps)
            rows = self.tokens[step * s.batch : (step + 1) * s.batch]
            for row in torch.split(rows, 1):
                (self._divergence(row) / len(rows)).backward()  # type: ignore[no-untyped-call]
            norm = self.optimizer.step(rate(step, s.steps, s.lr))
            if not math.isfinite(norm):
                raise InputError(f"the gradient became NaN or Inf at step {step}; lower --lr")
            if (step + 1) % every == 0 or step + 1 == s.steps:
                self._evaluate(step + 1)
        progress("tune", s.steps, s.steps)
        return self.history

    def _divergence(self, row: Tensor) -> Tensor:
        """Mean KL(16-bit || quantized), nats per token, of a window int64 [1, S]."""
        with torch.no_grad(), self._cast():
            wanted = self.teacher(row, use_cache=False).logits.float().log_softmax(-1)
        said = self.student.model(row, use_cache=False).logits
        found: Tensor = (wanted.exp() * (wanted - said.float().log_softmax(-1))).sum(-1).mean()
        return found

    def _cast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.fast else contextlib.nullcontext()

    @torch.no_grad()
    def _evaluate(self, step: int) -> None:
        divergence = float(torch.stack([self._divergence(row) for row in torch.split(self.held, 1)]).mean())
        if not self.best or divergence < min(old["divergence"] for old in self.history):
            self.best = self.student.tensors()
        self.history.append({"step": step, "divergence": divergence})
        parameters = {name: value.detach() for name, value in self.student.parameters.items()}
        parts = {"model": parameters, "best": self.best, "optimizer": self.optimizer.state()}
        save_training(self.stage.folder / STATE, parts, {"step": step, "history": self.history})

    def _resume(self) -> int:
        """Load the state of an interrupted run. Returns the step to go on with."""
        file = self.stage.folder / STATE
        if not file.is_file():
            return 0
        parts, told = load_training(file)
        with torch.no_grad():
            for name, value in parts["model"].items():
                self.student.parameters[name].copy_(value)
        self.optimizer.load(parts["optimizer"])
        self.best, self.history = parts["best"], told["history"]
        return int(told["step"])
