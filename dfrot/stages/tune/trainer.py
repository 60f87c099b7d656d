"""The training loop of `dfq tune` and of R1: what learns in a model, against the divergence from the 16-bit model.

Ranks share the windows of a step. The gradients of windows, and the divergences of held-out ones, are added in the
order of the windows; the first rank takes the step, and sends what it changed to the others.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dfrot.draft.training.optim import AdamW, rate
from dfrot.errors import InputError
from dfrot.evaluate.logits import TiledHead
from dfrot.processor import fast_bfloat16
from dfrot.progress import Progress
from dfrot.ranks.single import SINGLE, Mail, Ranks
from dfrot.runtime.load import load_model
from dfrot.runtime.trainable_attention import use_fast_attention
from dfrot.stage_folder import Stage
from dfrot.stages.tune.divergence import accumulate
from dfrot.stages.tune.settings import TuneSettings
from dfrot.training_state import load_training, save_training

STATE_FILE = "state.safetensors"
MAX_GRADIENT_NORM = 1.0


class Student(Protocol):
    """A model in which something learns."""

    model: Any
    """The model itself, in float32."""
    parameters: nn.ParameterDict
    """Everything that learns, by name with "/" for "."."""

    def tensors(self) -> dict[str, Tensor]:
        """Copies of what is kept of the best state, by name."""


def load_teacher(path: Path) -> Any:
    """A 16-bit checkpoint to compare with: in bfloat16 where the processor multiplies that."""
    teacher = load_model(path, dtype=torch.bfloat16 if fast_bfloat16() else torch.float32)
    use_fast_attention(teacher)
    return teacher


class DivergenceTrainer:
    """One run. A step depends on its number and the state before it alone: a killed run ends in the same bytes, and so
    does one on another number of ranks."""

    def __init__(
        self,
        stage: Stage,
        student: Student,
        teacher: Any,
        tokens: Tensor,
        settings: TuneSettings,
        ranks: Ranks = SINGLE,
        setting: str = "lr",
    ) -> None:
        """tokens: int64 [held_out + steps * batch, seqlen], the held-out windows first. The state file lies in the
        folder of `stage`; the first rank writes it. setting: what a user lowers when gradients explode."""
        self.stage, self.student, self.teacher, self.settings, self.ranks = stage, student, teacher, settings, ranks
        self.setting = setting
        self.held_out, self.tokens = tokens[: settings.held_out], tokens[settings.held_out :]
        self.heads = TiledHead(teacher), TiledHead(student.model)
        self.optimizer = AdamW(student.parameters, 0.0, MAX_GRADIENT_NORM)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> list[dict[str, float]]:
        """All steps that are not done yet; returns {"step", "divergence"} of every evaluation.

        Afterwards `best` of the first rank holds the tensors of the best one. Raises InputError when the
        gradient becomes NaN or Inf."""
        settings = self.settings
        every = max(1, -(-settings.steps // settings.evaluations))
        begin = self._resume()
        if not self.history:
            self._evaluate(0)
        for step in range(begin, settings.steps):
            progress("tune", step, settings.steps)
            windows = self.tokens[step * settings.batch : (step + 1) * settings.batch]
            self._add_gradients(windows)
            norm = self._step(rate(step, settings.steps, settings.rate))
            if not math.isfinite(norm):
                name = self.setting
                raise InputError(f"the gradient became NaN or Inf at step {step}; lower `{name}`", field=name)
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                self._evaluate(step + 1)
        progress("tune", settings.steps, settings.steps)
        return self.history

    def _add_gradients(self, windows: Tensor) -> None:
        """Give the first rank's parameters the gradient of the mean divergence of windows int64 [n, S]."""
        parameters = self.student.parameters
        total: dict[str, Tensor] = {}

        def add(gradients: dict[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                total[name] = total[name].add_(gradient) if name in total else gradient

        mail = Mail(self.ranks, add)
        for number in self.ranks.rounds(len(windows)):
            if number is not None:
                self._divergence(windows[number : number + 1], 1 / len(windows))
                mail.send(0, {name: value.grad for name, value in parameters.items() if value.grad is not None})
                for value in parameters.values():
                    value.grad = None
            mail.deliver()
        for name, gradient in total.items():
            parameters[name].grad = gradient

    def _step(self, lr: float) -> float:
        """Change the parameters of all ranks; returns the norm of their gradient."""
        norm = self.optimizer.step(lr) if self.ranks.first else 0.0
        if self.ranks.size == 1:
            return norm
        values = {name: value.detach() for name, value in self.student.parameters.items()}
        norm, sent = self.ranks.broadcast([norm, values if self.ranks.first else None])
        if not self.ranks.first:
            with torch.no_grad():
                for name, value in sent.items():
                    self.student.parameters[name].copy_(value)
        return float(norm)

    def _divergence(self, window: Tensor, share: float = 0.0) -> float:
        """Mean KL(16-bit || quantized), nats per token, of a window int64 [1, S]; `share` of its gradient is added to
        the parameters' where gradients are enabled."""
        with torch.no_grad():
            exact = self.teacher.base_model(window, use_cache=False).last_hidden_state[0]
        hidden = self.student.model.base_model(window, use_cache=False).last_hidden_state[0]
        return accumulate(*self.heads, exact, hidden, share)

    @torch.no_grad()
    def _evaluate(self, step: int) -> None:
        """Measure the held-out divergence after `step` steps, keep the best tensors, and save the state."""
        windows = torch.split(self.held_out, 1)
        divergence = self.ranks.mean(len(windows), lambda number: self._divergence(windows[number]))
        if not self.best or divergence < min(earlier["divergence"] for earlier in self.history):
            self.best = self.student.tensors()
        self.history.append({"step": step, "divergence": divergence})
        if not self.ranks.first:
            return
        parameters = {name: value.detach() for name, value in self.student.parameters.items()}
        parts = {"model": parameters, "best": self.best, "optimizer": self.optimizer.state()}
        save_training(self.stage.folder / STATE_FILE, parts, {"step": step, "history": self.history})

    def _resume(self) -> int:
        """Load the state of an interrupted run, if there is one. Returns the step to continue with."""
        file = self.stage.folder / STATE_FILE
        if not self.ranks.broadcast(file.is_file()):
            return 0
        parts, state = load_training(file)
        self.ranks.barrier()  # before the first rank writes another one
        with torch.no_grad():
            for name, value in parts["model"].items():
                self.student.parameters[name].copy_(value)
        self.optimizer.load(parts["optimizer"])
        self.best, self.history = parts["best"], state["history"]
        return int(state["step"])
