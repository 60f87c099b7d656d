"""The measurement: one pass over a checkpoint, block by block, every window through a block before the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.outliers.measure import pooled_maps as maps
from dfrot.outliers.measure.attribution import Ablation, zero_weights, attribute_entry
from dfrot.outliers.measure.block_meter import BlockMeter
from dfrot.outliers.measure.block_view import BlockCapture, run_and_capture, residual_writers
from dfrot.outliers.measure.criteria import Criteria
from dfrot.outliers.measure.loss import window_nll
from dfrot.outliers.measure.massive import MassiveTracker, Trace
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.measure.token_errors import RowStore, token_errors
from dfrot.rotation.refinement.features import normalise
from dfrot.rotation.refinement.massive_tokens import MassiveRule
from dfrot.stage_folder import Progress, silent

ROW_BYTES = 64 << 20  # rows kept for the token errors
ORIGINS = 8  # entries explained per place of creation
MAP_ROWS = 512  # tokens of the picture before and after rotation


@dataclass(frozen=True)
class MeasureSettings:
    """criteria; seed of the random rotations; rounds of the refinement; ablate: run the second stream."""

    criteria: Criteria = field(default_factory=Criteria)
    seed: int = 0
    rounds: int = 100
    ablate: bool = True


class Measurement:
    """`run` returns the findings as JSON values (see docs/outliers.md) and the pictures' data."""

    def __init__(
        self, subject: Subject, tokens: Tensor, settings: MeasureSettings, decode: Callable[[int], str]
    ) -> None:
        """tokens int64 [windows, S]."""
        self.subject, self.tokens, self.settings, self.decode = subject, tokens, settings, decode
        arch = subject.arch
        self.arch, self.runner, self.windows = arch, subject.runner, len(tokens)
        self.norms = [norm.name for norm in arch.spec.norms]
        self.writers = residual_writers(arch)
        self.eps = float(arch.config.get("rms_norm_eps", 1e-6))
        quota = ROW_BYTES // (4 * arch.hidden * arch.n_layers * len(self.norms))
        self.store = RowStore(MassiveRule.parse(settings.criteria.rule), self.eps, max(8, min(quota, 1024)))
        self.tracker = MassiveTracker(settings.criteria, tokens)
        self.ablation = Ablation(settings.criteria)
        self.created: list[dict[str, Any]] = []
        self.maps: dict[str, Any] = {}  # of states, by name
        self.inputs: dict[str, Any] = {}  # of taps of the middle block
        self.turned: dict[str, Any] = {}
        self.rows: Tensor | None = None

    @torch.no_grad()
    def run(self, progress: Progress = silent) -> dict[str, Any]:
        """Everything; `progress("outliers", done blocks, blocks)`."""
        arch = self.arch
        hidden = [self.runner.embed(row[None])[0] for row in self.tokens]
        self._embedding(hidden)
        layers = []
        for layer in range(arch.n_layers):
            progress("outliers", layer, arch.n_layers)
            layers.append(self._block(layer, hidden))
        progress("outliers", arch.n_layers, arch.n_layers)
        seed, rounds = self.settings.seed, self.settings.rounds
        massive = {
            "states": self.tracker.layers(self.decode),
            "channels": self.tracker.channels(self.decode),
            "created": self.created,
            "ablation": self._ablated(hidden),
        }
        tokens, matrices = token_errors(self.store, seed, rounds, 4, self.subject.rotated, progress)
        if (rows := self.rows) is not None:
            self.turned = {
                n: maps.pool_magnitudes(rows if m is None else rows @ m.float()) for n, m in matrices.items()
            }
        return {"massive": massive, "layers": layers, "token_errors": tokens}

    def _embedding(self, hidden: list[Tensor]) -> None:
        name = self.arch.spec.embed
        self.tracker.begin(name)
        born: list[Trace] = []
        for window, x in enumerate(hidden):
            found = self.tracker.add(window, x)
            if found:
                self.ablation.start(window, x)
            born += found
        if born:
            self.ablation.embedding(born, name)
            origins = {
                (trace.token, trace.entry[2]): {
                    "channel": trace.entry[2],
                    "row": trace.token,
                    "token": self.decode(trace.token),
                    "weight": float(hidden[trace.entry[0]][trace.entry[1], trace.entry[2]]),
                }
                for trace in born
            }
            self._create(name, "embedding", born, list(origins.values()))
        self.maps[name] = maps.pool_magnitudes(hidden[0])

    def _create(self, name: str, kind: str, born: list[Trace], origins: list[dict[str, Any]]) -> None:
        left = 0.0
        if self.ablation.hidden is not None and kind == "embedding":
            mine = [trace.entry for trace in born if trace.entry[0] == self.ablation.window]
            left = max((float(self.ablation.hidden[p, c].abs()) for _, p, c in mine), default=0.0)
        channels = sorted({trace.entry[2] for trace in born})
        self.created.append(
            {"where": name, "kind": kind, "entries": len(born), "channels": channels, "origins": origins, "left": left}
        )

    def _block(self, layer: int, hidden: list[Tensor]) -> dict[str, Any]:
        """Run all windows through one block, in place; returns what was measured in it."""
        arch, block = self.arch, self.subject.block(layer)
        meter = BlockMeter(self.subject, layer, self.windows, self.settings.criteria)
        born: dict[str, list[tuple[Trace, dict[str, Any]]]] = {one.name: [] for one in self.writers}
        for one in self.writers:
            self.tracker.begin(arch.full(layer, one.name))
        for window, tokens in enumerate(self.tokens):
            view = BlockCapture(layer, window, tokens, hidden[window])
            out = run_and_capture(self.runner, block, arch, view, self.subject.cache())
            inputs = [view.before, *view.states.values()]
            masks = {
                norm: self.store.add(arch.full(layer, norm), x, tokens, self.windows)
                for norm, x in zip(self.norms, inputs)
            }
            meter.add(view, masks)
            for at, one in enumerate(self.writers):
                for trace in self.tracker.add(window, view.states[one.name], at - len(self.writers)):
                    self.ablation.start(window, view.before)
                    told = len(born[one.name]) < ORIGINS
                    born[one.name].append((trace, attribute_entry(view, block, arch, one, trace) if told else {}))
            if window == 0:
                self._picture(layer, view)
            hidden[window] = out
        result = meter.close(block)
        self._ablate(layer, block, born, hidden)
        for one in self.writers:
            if found := born[one.name]:
                kind = "mlp" if one.reads == "mlp" else "attention"
                origins = [told for _, told in found if told]
                self._create(arch.full(layer, one.name), kind, [trace for trace, _ in found], origins)
        return {"layer": layer, **result}

    def _picture(self, layer: int, view: BlockCapture) -> None:
        for one in self.writers[-1:]:
            self.maps[self.arch.full(layer, one.name)] = maps.pool_magnitudes(view.states[one.name])
        if layer == self.arch.n_layers // 2:
            self.rows = normalise(view.before[:MAP_ROWS], self.eps)
            for tap in self.arch.taps():
                self.inputs[self.arch.full(layer, tap.name)] = maps.pool_magnitudes(view.taps[tap.name])

    def _ablate(
        self, layer: int, block: nn.Module, born: dict[str, list[tuple[Trace, dict[str, Any]]]], hidden: list[Tensor]
    ) -> None:
        """Take the second stream through the block, with what was created here switched off. Uses up the block."""
        if self.ablation.hidden is None or not self.settings.ablate:
            return
        cuts = {
            name: sorted({(told["channel"], term["column"]) for _, told in found if told for term in told["terms"]})
            for name, found in born.items()
        }
        if any(cuts.values()):
            zero_weights(block, cuts)
            self.ablation.removed += [f"{self.arch.full(layer, n)}: {len(c)} weights" for n, c in cuts.items() if c]
        view = BlockCapture(layer, self.ablation.window, self.tokens[self.ablation.window], self.ablation.hidden)
        self.ablation.hidden = run_and_capture(self.runner, block, self.arch, view, self.subject.cache())
        for one in self.writers:
            self.ablation.note(self.arch.full(layer, one.name), view.states[one.name])

    def _ablated(self, hidden: list[Tensor]) -> dict[str, Any] | None:
        """What became of the stream without the massive activations' sources."""
        ablation = self.ablation
        if ablation.hidden is None or not self.settings.ablate:
            return None
        tokens = self.tokens[ablation.window]
        losses = [window_nll(self.runner, x, tokens) for x in (hidden[ablation.window], ablation.hidden)]
        return {
            "window": ablation.window,
            "removed": ablation.removed,
            "massive_left": ablation.left,
            "confirmed": not any(ablation.left.values()),
            "perplexity": [float(torch.tensor(min(loss, 700.0), dtype=torch.float64).exp()) for loss in losses],
        }
