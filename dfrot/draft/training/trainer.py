"""Training a draft: the loop and its evaluations.

A step depends on its number and on the state of the previous one alone: samples and noise are drawn from generators
seeded by the step. So one file with parameters, moments, best weights and history is the whole state, and a resumed
run ends in the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.build import build
from dfrot.draft.training.distributed import LocalGroup
from dfrot.draft.training.loss import Losses, losses, mean_losses
from dfrot.draft.training.optim import AdamW, rate
from dfrot.draft.training.schedule import PROBE_STEPS, Schedule
from dfrot.draft.training.settings import TrainSettings
from dfrot.draft.training.sources import FeatureSource
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.draft.training.train_state import load_state, save_state
from dfrot.errors import InputError
from dfrot.progress import Progress, silent

DIVERGED = "the loss became NaN or Inf at step {}; lower `lr`, or check the target with dfq eval ppl"
# Seeds: every epoch has one for its order, every sample of a step one for its noise.
SEED_STRIDE = 1_000_003  # between runs; a prime beyond any number of epochs or steps
NOISE_SEEDS_PER_STEP = 4096  # beyond any batch
MEASURED_ROOTS = 64  # of every held-out sample, for drafts of whole blocks


@dataclass
class Trainer:
    """One run."""

    draft: Draft
    """The draft. Where processes hold a part of it each, it is another object, whole on the first process, after
    `run`."""
    source: FeatureSource
    """Samples and features."""
    embed: Callable[[Tensor], Tensor]
    """The target's embedding."""
    head: Head
    """The target's head."""
    options: TrainSettings
    """Settings."""
    folder: Path
    """Where the state is kept between calls."""
    report: Callable[[dict[str, Any]], None] = lambda record: None
    """Called with the record of every evaluation."""
    own_head: Head | None = None
    """The target's head, cut to the draft's tokens; None cuts the logits of `head`."""
    group: LocalGroup = field(default_factory=LocalGroup)
    """Processes that train together. The first of them keeps the state and reports."""

    def __post_init__(self) -> None:
        if self.options.batch < self.group.size:
            raise InputError(
                f"`batch` {self.options.batch}: {self.group.size} processes need one sample each; raise it",
                field="batch",
            )
        self.count = len(self.source.corpus("train"))
        self.steps = max(1, round(self.options.epochs * self.count / self.options.batch))
        self.schedule: Schedule | None = None  # with a budget of hours
        self.group.shard(self.draft)
        self.optimizer = self._optimizer()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}

    def _optimizer(self) -> AdamW:
        return AdamW(self.draft, self.options.weight_decay, self.options.clip, self.group)

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(1, -(-self.steps // self.options.evaluations))

    def run(self, progress: Progress = silent) -> list[dict[str, Any]]:
        """Train to the end and leave the best weights in `draft`. Returns the history: one record per evaluation.

        Raises InputError when the loss diverges."""
        begin = self._resume()
        if not self.history:
            if self.options.hours is not None:
                self._plan(self.options.hours)
            self._evaluate(0, [], 0.0, 0.0)
        recent: list[Losses] = []
        tokens, clock = 0, time.perf_counter()
        for step in range(begin, self.steps):
            step_tokens, loss = self._step(step)
            recent.append(loss)
            tokens += step_tokens
            progress("train the draft, samples", (step + 1) * self.options.batch, self.steps * self.options.batch)
            if (step + 1) % self.evaluate_every == 0 or step + 1 == self.steps:
                seconds = time.perf_counter() - clock
                self._evaluate(step + 1, recent, tokens / seconds, seconds / len(recent))
                recent, tokens, clock = [], 0, time.perf_counter()
        if self.group.sharded:
            best = {name: self.group.gather(value) for name, value in self.best.items()}
            self.draft = build(self.draft.config)
            self.best = best
        self.draft.load_state_dict(self.best)
        return self.history

    def _plan(self, hours: float) -> None:
        """Choose the number of steps that fit into a budget, from the speed of some steps, which are undone again."""
        untrained = {name: value.detach().clone() for name, value in self.draft.state_dict().items()}
        for number in range(PROBE_STEPS + 1):
            if number == 1:  # the first step allocates memory
                begin = time.perf_counter()
            self._step(number)
        stepped = time.perf_counter()
        self.draft.load_state_dict(untrained)
        self.optimizer = self._optimizer()
        self.measure()
        seconds = ((stepped - begin) / PROBE_STEPS, time.perf_counter() - stepped)
        schedule = Schedule.fitting(hours, self.options.evaluations, *seconds)
        self._follow(json.loads(self.group.broadcast(json.dumps(schedule.to_dict()).encode())))

    def _follow(self, schedule: dict[str, Any]) -> None:
        """Take over a schedule, that of the first process or of the interrupted run."""
        self.schedule = Schedule(**schedule)
        self.steps = self.schedule.steps

    def samples(self, step: int) -> Tensor:
        """Indices int64 [batch] of the samples of a step: every epoch is a permutation of its own."""
        indices = []
        for number in range(step * self.options.batch, (step + 1) * self.options.batch):
            epoch, index = divmod(number, self.count)
            indices.append(int(self._order(epoch)[index]))
        return torch.tensor(indices)

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.options.seed * SEED_STRIDE + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.count, generator=generator)
        return self._permutation

    def _step(self, step: int) -> tuple[int, Losses]:
        """One optimizer step. Returns the tokens and the losses of the whole batch."""
        batch = self.samples(step)
        rows, features = self.source.batch("train", self.group.share(batch))
        noisy = features
        if self.options.noise:
            noisy = _with_noise(features, self.options.noise, self._seeds(step, len(batch)))
        self.draft.train()
        chosen = None if self.draft.max_depth is None else self._roots(rows.mask, step, len(batch))
        loss = self._losses(rows.tokens, rows.mask, features, noisy, chosen, self.group.counts)
        loss.total.backward()  # type: ignore[no-untyped-call]
        own = torch.tensor([float(loss.total.detach()), loss.feature, loss.mid, *loss.kl, *loss.agreement])
        sums = self.group.sum_gradients(self.draft.parameters(), own)
        if not bool(torch.isfinite(sums).all()):
            raise InputError(DIVERGED.format(step), field="lr")
        self.optimizer.step(rate(step, self.steps, self.options.lr))
        feature, mid, *rest = sums[1:].tolist()
        batch_losses = Losses(sums[0], feature, mid, rest[: len(loss.kl)], rest[len(loss.kl) :])
        return int(self.source.corpus("train").lengths[batch].sum()), batch_losses

    def _seeds(self, step: int, count: int) -> list[int]:
        """The seeds of this process's samples of a step, of which there are `count`."""
        first = (self.options.seed * SEED_STRIDE + step) * NOISE_SEEDS_PER_STEP
        return [first + int(number) for number in self.group.share(torch.arange(count))]

    def _roots(self, mask: Tensor, step: int, count: int) -> Tensor:
        """bool [B, S]: random slots that count, `roots` of every sample where it has so many."""
        seeds = self._seeds(step, count)
        drawn = [torch.rand(mask.shape[1], generator=torch.Generator().manual_seed(-1 - seed)) for seed in seeds]
        return _largest(torch.stack(drawn).masked_fill(~mask, -1.0), mask, self.options.roots)

    def _losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        clean: TargetFeatures,
        noisy: TargetFeatures,
        chosen: Tensor | None = None,
        counts_of: Callable[[Sequence[int]], list[int]] = list,
    ) -> Losses:
        """Losses of sequences int64 [B, S]. clean: features to imitate. noisy: features that the draft reads. chosen:
        bool [B, S], the tokens that are roots; None for all."""
        dtype = next(self.draft.parameters()).dtype
        inputs = noisy.aux if self.draft.aux_layers else noisy.last
        if inputs is None:
            raise InputError(f"{self.draft.config.arch} drafts read layers, and these features hold none")
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        embeddings = self.embed(tokens) if clean.embeddings is None else clean.embeddings
        if clean.kept is not None:  # some image tokens are no slots of the draft; it still reads all features
            positions = clean.kept
            embeddings, mask = _at(embeddings, positions), mask.gather(1, positions)
            chosen = None if chosen is None else chosen.gather(1, positions)
            mid = None if clean.mid is None else _at(clean.mid, positions)
            clean = TargetFeatures(_at(clean.last, positions), mid)
        autocast: Any = torch.autocast("cpu", torch.bfloat16) if self.options.bf16 else contextlib.nullcontext()
        with autocast:
            steps = self.draft.training_steps(self.options.ttt_steps)
            out = self.draft.train_forward(embeddings.to(dtype), positions, inputs.to(dtype), steps, chosen)
            count_agreement = not torch.is_grad_enabled()
            counted = (self.options.weights, count_agreement, counts_of, self.own_head)
            return losses(self.draft, out, clean, mask, self.head, *counted)

    @torch.no_grad()
    def measure(self) -> Losses:
        """Losses on the held-out samples, averaged over batches of them."""
        self.draft.eval()
        batches = []
        index = torch.arange(len(self.source.corpus("held_out")))
        for part in torch.split(index, self.options.batch):
            rows, features = self.source.batch("held_out", part)
            chosen = None if self.draft.max_depth is None else spaced_roots(rows.mask, MEASURED_ROOTS)
            batches.append(self._losses(rows.tokens, rows.mask, features, features, chosen))
        return mean_losses(batches)

    def _evaluate(self, step: int, recent: list[Losses], tokens_per_second: float, seconds_per_step: float) -> None:
        """Measure, remember the best weights, save the state, report. recent: losses since the last evaluation."""
        held_out = self.measure()
        record: dict[str, Any] = {
            "step": step,
            "held_out_kl": held_out.kl,
            "held_out_agreement": held_out.agreement,
            **by_rank(held_out),
            "simulated_tau": held_out.simulated_tau,
        }
        if recent:
            mean = mean_losses(recent)
            record.update(loss=float(mean.total), kl=mean.kl, feature_loss=mean.feature, mid_loss=mean.mid)
        if self.schedule is not None:
            record["seconds"] = seconds_per_step * len(recent) + (self.history[-1]["seconds"] if self.history else 0.0)
        if not self.best or record["simulated_tau"] > max(old["simulated_tau"] for old in self.history):
            self.best = {name: value.detach().clone() for name, value in self.draft.state_dict().items()}
        self.history.append(record)
        parts = {"model": self.draft.state_dict(), "best": self.best, "optimizer": self.optimizer.state()}
        progress = {"step": step, "history": self.history}
        if self.schedule is not None:
            progress["schedule"] = self.schedule.to_dict()
        save_state(self.folder, parts, progress, self.group)
        pace = {"tokens_per_second": tokens_per_second, "seconds_per_step": seconds_per_step}
        self.report({**record, "steps": self.steps, **pace})

    def _resume(self) -> int:
        """Load the state of an interrupted run, if there is one. Returns the step to continue with."""
        state = load_state(self.folder, self.draft.state_dict(), self.group)
        if state is None:
            return 0
        parts, record = state
        self.draft.load_state_dict(parts["model"])
        self.optimizer.load(parts["optimizer"])
        self.best, self.history = parts["best"], record["history"]
        if "schedule" in record:
            self._follow(record["schedule"])
        return int(record["step"])


def spaced_roots(mask: Tensor, most: int) -> Tensor:
    """bool [B, S]: of every sample's slots that count at most `most`, evenly spaced."""
    rank, count = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)
    stride = (count + most - 1) // most
    return mask & (rank % stride.clamp(min=1) == 0)


def _largest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """bool [B, S]: where the `count` largest values of a row are, within the mask."""
    top = values.topk(min(count, values.shape[1]), 1).indices
    return torch.zeros_like(mask).scatter(1, top, torch.ones_like(top, dtype=torch.bool)) & mask


def _with_noise(features: TargetFeatures, width: float, seeds: Sequence[int]) -> TargetFeatures:
    """Features with uniform noise on what the draft reads. What it imitates stays clean.

    width: half-width of the noise, in units of the features' rms. seeds: one per sample, so that padding does not
    change a sample's noise."""

    def noisy(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        rms = x.float().pow(2).mean(-1, keepdim=True).sqrt()
        uniform = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return x + (width * rms * (2 * torch.stack(uniform) - 1)).to(x.dtype)

    return replace(features, last=noisy(features.last), aux=noisy(features.aux))  # type: ignore[arg-type]


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, S, d] at positions int64 [B, n] -> [B, n, d]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def by_rank(held_out: Losses) -> dict[str, Any]:
    """The part of a record from which acceptance rates are read (dfrot/generation/speculation/acceptance_rates.py)."""
    return {"held_out_ranks": held_out.ranks, "held_out_mass": held_out.mass}
