"""Training a draft: the loop, its checkpoints, and what a killed run continues from.

A step depends on its number and on the state of the previous one alone: samples and noise are drawn from
generators seeded by the step. So one file with parameters, moments, best weights and history is the whole state,
and a resumed run ends in the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_tensor
from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.build import build
from dfrot.draft.training.distributed import LocalGroup
from dfrot.draft.training.loss import Losses, losses, simulated_tau
from dfrot.draft.training.optim import AdamW, rate
from dfrot.draft.training.settings import TrainOptions
from dfrot.draft.training.sources import FeatureSource
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.errors import InputError
from dfrot.stage_folder import Progress, silent
from dfrot.training_state import open_training, save_training

STATE = "state.safetensors"
BAD = "the loss became NaN or Inf at step {}; lower --lr, or check the target with dfq eval ppl"


@dataclass
class Trainer:
    """One run. `embed` and `head` are the target's; `folder` is where the state lies between calls. group: processes
    that train together; the first of them keeps the state and reports. They may hold a part of `draft` each: then it is
    another object, whole on the first of them, after `run`."""

    draft: Draft
    source: FeatureSource
    embed: Callable[[Tensor], Tensor]
    head: Head
    options: TrainOptions
    folder: Path
    report: Callable[[dict[str, Any]], None] = lambda record: None
    group: LocalGroup = field(default_factory=LocalGroup)

    def __post_init__(self) -> None:
        if self.options.batch < self.group.size:
            raise InputError(
                f"--batch {self.options.batch}: {self.group.size} processes need one sample each; raise it"
            )
        self.count = len(self.source.corpus("train"))
        self.steps = max(1, round(self.options.epochs * self.count / self.options.batch))
        self.every = max(1, -(-self.steps // self.options.evaluations))
        self.group.shard(self.draft)
        self.optimizer = AdamW(self.draft, self.options.weight_decay, self.options.clip, self.group)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress = silent) -> list[dict[str, Any]]:
        """Train to the end and leave the best weights in `draft`. Returns the history: one record per evaluation."""
        begin = self._resume()
        if not self.history:
            self._evaluate(0, [], 0.0, 0.0)
        recent: list[Losses] = []
        tokens, clock = 0, time.perf_counter()
        for step in range(begin, self.steps):
            seen, loss = self._step(step)
            recent.append(loss)
            tokens += seen
            progress("train the draft, samples", (step + 1) * self.options.batch, self.steps * self.options.batch)
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                seconds = time.perf_counter() - clock
                self._evaluate(step + 1, recent, tokens / seconds, seconds / len(recent))
                recent, tokens, clock = [], 0, time.perf_counter()
        if self.group.sharded:
            best = {name: self.group.whole(value) for name, value in self.best.items()}
            self.draft = build(self.draft.config)
            self.best = best
        self.draft.load_state_dict(self.best)
        return self.history

    def samples(self, step: int) -> Tensor:
        """Indices of the samples of a step: every epoch is a permutation of its own."""
        picked = []
        for number in range(step * self.options.batch, (step + 1) * self.options.batch):
            epoch, place = divmod(number, self.count)
            picked.append(int(self._order(epoch)[place]))
        return torch.tensor(picked)

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            source = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.count, generator=source)
        return self._permutation

    def _step(self, step: int) -> tuple[int, Losses]:
        whole = self.samples(step)
        rows, features = self.source.batch("train", self.group.share(whole))
        noisy = features
        if self.options.noise:
            places = self.group.share(torch.arange(len(whole)))
            first = (self.options.seed * 1_000_003 + step) * 4096
            noisy = _with_noise(features, self.options.noise, [first + int(place) for place in places])
        self.draft.train()
        loss = self._losses(rows.tokens, rows.mask, features, noisy, self.group.counts)
        loss.total.backward()  # type: ignore[no-untyped-call]
        own = torch.tensor([float(loss.total.detach()), loss.feature, loss.mid, *loss.kl, *loss.agreement])
        found = self.group.sum_gradients(self.draft.parameters(), own)
        if not bool(torch.isfinite(found).all()):
            raise InputError(BAD.format(step))
        self.optimizer.step(rate(step, self.steps, self.options.lr))
        feature, mid, *rest = found[1:].tolist()
        told = Losses(found[0], feature, mid, rest[: len(loss.kl)], rest[len(loss.kl) :])
        return int(self.source.corpus("train").lengths[whole].sum()), told

    def _losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        clean: TargetFeatures,
        given: TargetFeatures,
        counts_of: Callable[[Sequence[int]], list[int]] = list,
    ) -> Losses:
        dtype = next(self.draft.parameters()).dtype
        reads = given.aux if self.draft.config.arch == "eagle3" else given.last
        if reads is None:
            raise InputError("an eagle3 draft reads three layers, and these features hold none")
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        embeddings = self.embed(tokens) if clean.embeddings is None else clean.embeddings
        if clean.kept is not None:  # some image tokens are no slots of the draft; features all stay
            positions = clean.kept
            embeddings, mask = _at(embeddings, positions), mask.gather(1, positions)
            mid = None if clean.mid is None else _at(clean.mid, positions)
            clean = TargetFeatures(_at(clean.last, positions), mid)
        fast: Any = torch.autocast("cpu", torch.bfloat16) if self.options.bf16 else contextlib.nullcontext()
        with fast:
            out = self.draft.train_forward(embeddings.to(dtype), positions, reads.to(dtype), self.options.ttt_steps)
            counted = not torch.is_grad_enabled()
            return losses(self.draft, out, clean, mask, self.head, self.options.weights, counted, counts_of)

    @torch.no_grad()
    def measure(self) -> Losses:
        """Losses on the held-out samples, averaged over batches of them."""
        self.draft.eval()
        found = []
        index = torch.arange(len(self.source.corpus("held_out")))
        for part in torch.split(index, self.options.batch):
            rows, features = self.source.batch("held_out", part)
            found.append(self._losses(rows.tokens, rows.mask, features, features))
        return _mean(found)

    def _evaluate(self, step: int, recent: list[Losses], speed: float, each: float) -> None:
        held = self.measure()
        record: dict[str, Any] = {
            "step": step,
            "held_out_kl": held.kl,
            "held_out_agreement": held.agreement,
            **by_rank(held),
            "simulated_tau": held.simulated_tau,
        }
        if recent:
            mean = _mean(recent)
            record.update(loss=float(mean.total), kl=mean.kl, feature_loss=mean.feature, mid_loss=mean.mid)
        if not self.best or record["simulated_tau"] > max(old["simulated_tau"] for old in self.history):
            self.best = {name: value.detach().clone() for name, value in self.draft.state_dict().items()}
        self.history.append(record)
        self._save(step)
        pace = {"steps": self.steps, "tokens_per_second": speed, "seconds_per_step": each}
        self.report({**record, **pace})

    # --- state --------------------------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        parts = {"model": self.draft.state_dict(), "best": self.best, "optimizer": self.optimizer.state()}
        if self.group.rank == 0:
            save_training(self.folder / STATE, parts, {"step": step, "history": self.history}, self.group.whole)
        else:
            for value in (value for part in parts.values() for value in part.values()):
                self.group.whole(value)  # in the order in which the first process writes

    def _resume(self) -> int:
        """Load the state of an interrupted run, which may have had another number of processes. Returns the step to go
        on with."""
        file = self.folder / STATE
        parts: dict[str, dict[str, TensorEntry]] = {}
        head = b""
        if self.group.rank == 0 and file.is_file():
            parts, told = open_training(file)
            forms = {part: {name: _form(entry) for name, entry in named.items()} for part, named in parts.items()}
            head = json.dumps([told, forms]).encode()
        head = self.group.tell(head)
        if not head:
            return 0
        told, forms = json.loads(head)
        own, found = self.draft.state_dict(), defaultdict[str, dict[str, Tensor]](dict)
        for part, named in forms.items():
            for name, (shape, dtype) in named.items():
                like = own[name.split("/", 1)[1] if part == "optimizer" else name]
                sent = read_tensor(parts[part][name]) if parts else None
                found[part][name] = self.group.spread(sent, shape, getattr(torch, dtype), like)
        self.draft.load_state_dict(found["model"])
        self.optimizer.load(found["optimizer"])
        self.best, self.history = found["best"], told["history"]
        return int(told["step"])


def _form(entry: TensorEntry) -> tuple[list[int], str]:
    """Shape, and the name of the dtype."""
    return list(entry.shape), str(entry.dtype).removeprefix("torch.")


def _with_noise(features: TargetFeatures, width: float, seeds: Sequence[int]) -> TargetFeatures:
    """Features with uniform noise on what the draft reads, of each sample by its own seed, which its padding does not
    change; what the draft imitates stays clean."""

    def noisy(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        rms = x.float().pow(2).mean(-1, keepdim=True).sqrt()
        drawn = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return x + (width * rms * (2 * torch.stack(drawn) - 1)).to(x.dtype)

    return replace(features, last=noisy(features.last), aux=noisy(features.aux))  # type: ignore[arg-type]


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x [B, S, d] at places int64 [B, n]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _mean(found: list[Losses]) -> Losses:
    """Plain mean over batches."""
    count = len(found)
    total = torch.stack([one.total.detach() for one in found]).mean()
    steps = range(len(found[0].kl))
    return Losses(
        total,
        sum(one.feature for one in found) / count,
        sum(one.mid for one in found) / count,
        [sum(one.kl[t] for one in found) / count for t in steps],
        [sum(one.agreement[t] for one in found) / count for t in steps],
        _mean_table([one.ranks for one in found]),
        _mean_table([one.mass for one in found]),
    )


def _mean_table(found: list[list[list[float]]]) -> list[list[float]]:
    return [[sum(cells) / len(cells) for cells in zip(*step)] for step in zip(*found)]


def by_rank(held: Losses) -> dict[str, Any]:
    """What the record of a draft says of its guesses by step and rank (see dfrot/generation/acceptance_rates.py)."""
    return {"held_out_ranks": held.ranks, "held_out_mass": held.mass}


def promised(history: list[dict[str, Any]]) -> float:
    """The best held-out simulated acceptance length of a run."""
    return max(simulated_tau(record["held_out_agreement"]) for record in history)
