"""The training loop of `dfq tune`: scales and norm gains against the divergence from the 16-bit model."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import describe
from dfrot.draft.training.optim import AdamW, rate
from dfrot.errors import InputError
from dfrot.processor import fast_bfloat16
from dfrot.progress import Progress
from dfrot.runtime.load import load_model
from dfrot.runtime.trainable import TrainableModel
from dfrot.stage_folder import Stage
from dfrot.stages.tune.plan import TunePlan
from dfrot.training_state import load_training, save_training

STATE_FILE = "state.safetensors"
MAX_GRADIENT_NORM = 1.0


class TuneTrainer:
    """One run. A step depends on its number and the state before it alone: a killed run ends in the same bytes."""

    def __init__(self, stage: Stage, plan: TunePlan) -> None:
        """Load both models, in float32; the state file lies in the folder of `stage`."""
        self.stage, self.settings = stage, plan.settings
        self.held_out, self.tokens = plan.tokens[: plan.settings.held_out], plan.tokens[plan.settings.held_out :]
        arch = describe(plan.student.config)
        stored = plan.student.entry(f"{arch.spec.final_norm.name}.weight").dtype
        self.student = TrainableModel(load_model(plan.student.path, dtype=torch.float32), arch, stored)
        self.teacher = load_model(plan.teacher.path, dtype=torch.float32)
        self.optimizer = AdamW(self.student.parameters, 0.0, MAX_GRADIENT_NORM)
        self.half = fast_bfloat16()
        if self.half:
            _store_in_bfloat16(self.teacher)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> list[dict[str, float]]:
        """All steps that are not done yet; returns {"step", "divergence"} of every evaluation.

        Afterwards `best` holds the stored tensors of the best one. Raises InputError when the gradient becomes NaN or
        Inf."""
        settings = self.settings
        every = max(1, -(-settings.steps // settings.evaluations))
        begin = self._resume()
        if not self.history:
            self._evaluate(0)
        for step in range(begin, settings.steps):
            progress("tune", step, settings.steps)
            windows = self.tokens[step * settings.batch : (step + 1) * settings.batch]
            for window in torch.split(windows, 1):
                (self._divergence(window) / len(windows)).backward()  # type: ignore[no-untyped-call]
            norm = self.optimizer.step(rate(step, settings.steps, settings.lr))
            if not math.isfinite(norm):
                raise InputError(f"the gradient became NaN or Inf at step {step}; lower `lr`", field="lr")
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                self._evaluate(step + 1)
        progress("tune", settings.steps, settings.steps)
        return self.history

    def _divergence(self, window: Tensor) -> Tensor:
        """Mean KL(16-bit || quantized), nats per token, of a window int64 [1, S]."""
        with torch.no_grad(), self._autocast():
            teacher = self.teacher(window, use_cache=False).logits.float().log_softmax(-1)
        student = self.student.model(window, use_cache=False).logits.float().log_softmax(-1)
        divergence: Tensor = (teacher.exp() * (teacher - student)).sum(-1).mean()
        return divergence

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.half else contextlib.nullcontext()

    @torch.no_grad()
    def _evaluate(self, step: int) -> None:
        """Measure the held-out divergence after `step` steps, keep the best tensors, and save the state."""
        divergence = float(torch.stack([self._divergence(window) for window in torch.split(self.held_out, 1)]).mean())
        if not self.best or divergence < min(earlier["divergence"] for earlier in self.history):
            self.best = self.student.tensors()
        self.history.append({"step": step, "divergence": divergence})
        parameters = {name: value.detach() for name, value in self.student.parameters.items()}
        parts = {"model": parameters, "best": self.best, "optimizer": self.optimizer.state()}
        save_training(self.stage.folder / STATE_FILE, parts, {"step": step, "history": self.history})

    def _resume(self) -> int:
        """Load the state of an interrupted run, if there is one. Returns the step to continue with."""
        file = self.stage.folder / STATE_FILE
        if not file.is_file():
            return 0
        parts, state = load_training(file)
        with torch.no_grad():
            for name, value in parts["model"].items():
                self.student.parameters[name].copy_(value)
        self.optimizer.load(parts["optimizer"])
        self.best, self.history = parts["best"], state["history"]
        return int(state["step"])


def _store_in_bfloat16(model: nn.Module) -> None:
    """Round the weights of linears once, which autocast would do in every step. A tied embedding stays float32."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.data.bfloat16(), requires_grad=False)
