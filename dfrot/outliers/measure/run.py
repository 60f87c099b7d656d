"""The measurement of outliers: one pass over a checkpoint, all windows through a block before the next block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.outliers.measure import pooled_maps as maps
from dfrot.outliers.measure.attribution import Ablation, attribute_entry, zero_weights
from dfrot.outliers.measure.block_meter import BlockMeter
from dfrot.outliers.measure.block_view import BlockCapture, residual_writers, run_and_capture
from dfrot.outliers.measure.loss import window_nll
from dfrot.outliers.measure.massive import MassiveTracker, Trace
from dfrot.outliers.measure.settings import MeasureSettings
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.measure.token_errors import RowStore, token_errors
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.refinement.calibration_rows import normalise
from dfrot.rotation.refinement.massive_rule import MassiveRule

ROW_BYTES = 64 << 20  # of the rows kept for the token errors
MIN_ROWS, MAX_ROWS = 8, 1024  # kept per norm
BITS = 4
MAX_ORIGINS = 8  # entries explained per writer
MAP_ROWS = 512  # tokens of the pictures before and after rotation
MAX_LOSS = 700.0  # exp of more overflows

Created = dict[str, list[tuple[Trace, dict[str, Any]]]]
"""Writer -> entries that it made massive, each with its origin (empty where it is not explained)."""


class Measurement:
    """One pass over a checkpoint: `run` returns the findings as JSON values (see docs/outliers.md).

    Every rank runs all windows, so that each knows the state of the stream; they share what is measured of blocks and
    their linears, and the refinement.

    `state_maps`, `input_maps` and `rotated_maps` hold the data of the pictures afterwards, by name."""

    def __init__(
        self,
        subject: Subject,
        tokens: Tensor,
        settings: MeasureSettings,
        decode: Callable[[int], str],
        ranks: Ranks = SINGLE,
    ) -> None:
        """tokens int64 [windows, S]; decode: token id -> text."""
        self.ranks = ranks
        self.subject, self.tokens, self.settings, self.decode = subject, tokens, settings, decode
        arch = subject.arch
        self.arch, self.runner, self.windows = arch, subject.runner, len(tokens)
        self.norms = [norm.name for norm in arch.spec.norms]
        self.writers = residual_writers(arch)
        self.eps = arch.norm_eps
        quota = ROW_BYTES // (4 * arch.hidden * arch.n_layers * len(self.norms))
        rule = MassiveRule.parse(settings.criteria.rule)
        self.store = RowStore(rule, self.eps, max(MIN_ROWS, min(quota, MAX_ROWS)))
        self.tracker = MassiveTracker(settings.criteria, tokens)
        self.ablation = Ablation(settings.criteria)
        self.created: list[dict[str, Any]] = []
        self.state_maps: dict[str, Any] = {}
        self.input_maps: dict[str, Any] = {}  # of the middle block
        self.rotated_maps: dict[str, Any] = {}
        self.map_rows: Tensor | None = None

    @torch.no_grad()
    def run(self, progress: Progress = silent) -> dict[str, Any]:
        """Measure everything. `progress("outliers", blocks done, blocks)`."""
        arch = self.arch
        hidden = [self.runner.embed(row[None])[0] for row in self.tokens]
        self._measure_embedding(hidden)
        layers = []
        for layer in range(arch.n_layers):
            progress("outliers", layer, arch.n_layers)
            layers.append(self._measure_block(layer, hidden))
        layers = self.ranks.everyones(self.ranks.own(layers))
        progress("outliers", arch.n_layers, arch.n_layers)
        seed, rounds = self.settings.seed, self.settings.rounds
        massive = {
            "states": self.tracker.state_summaries(self.decode),
            "channels": self.tracker.channel_summaries(self.decode),
            "created": self.created,
            "ablation": self._ablation_report(hidden),
        }
        errors, matrices = token_errors(self.store, seed, rounds, BITS, self.subject.rotated, progress, self.ranks)
        if (rows := self.map_rows) is not None:
            self.rotated_maps = {
                name: maps.pool_magnitudes(rows if matrix is None else rows @ matrix.float())
                for name, matrix in matrices.items()
            }
        return {"massive": massive, "layers": layers, "token_errors": errors}

    def _measure_embedding(self, hidden: list[Tensor]) -> None:
        """Detect massive entries that the embedding creates."""
        name = self.arch.spec.embed
        self.tracker.begin(name)
        created: list[Trace] = []
        for window, x in enumerate(hidden):
            traces = self.tracker.add(window, x)
            if traces:
                self.ablation.start(window, x)
            created += traces
        if created:
            self.ablation.remove_embedding_entries(created, name)
            origins = {
                (trace.token, trace.entry[2]): {
                    "channel": trace.entry[2],
                    "row": trace.token,
                    "token": self.decode(trace.token),
                    "weight": float(hidden[trace.entry[0]][trace.entry[1], trace.entry[2]]),
                }
                for trace in created
            }
            self._add_creation(name, "embedding", created, list(origins.values()))
        self.state_maps[name] = maps.pool_magnitudes(hidden[0])

    def _add_creation(self, name: str, kind: str, traces: list[Trace], origins: list[dict[str, Any]]) -> None:
        """Record a state that creates massive entries, and where they come from."""
        left = 0.0
        stream = self.ablation.hidden
        if stream is not None and kind == "embedding":
            entries = [trace.entry for trace in traces if trace.entry[0] == self.ablation.window]
            left = max((float(stream[position, channel].abs()) for _, position, channel in entries), default=0.0)
        self.created.append(
            {
                "where": name,
                "kind": kind,
                "entries": len(traces),
                "channels": sorted({trace.entry[2] for trace in traces}),
                "origins": origins,
                "left": left,
            }
        )

    def _measure_block(self, layer: int, hidden: list[Tensor]) -> dict[str, Any]:
        """Run all windows through one block, replacing `hidden`; returns the layer's part of the report on the
        rank that it belongs to."""
        block = self.subject.block(layer)
        meter = BlockMeter(self.subject, layer, self.windows, self.settings.criteria)
        created: Created = {writer.name: [] for writer in self.writers}
        for writer in self.writers:
            self.tracker.begin(self.arch.full(layer, writer.name))
        for window in range(self.windows):
            hidden[window] = self._measure_window(layer, window, block, hidden[window], meter, created)
        result = meter.close(block) if layer % self.ranks.size == self.ranks.rank else {}
        self._run_ablation(layer, block, created)
        for writer in self.writers:
            if pairs := created[writer.name]:
                kind = "mlp" if writer.reads == "mlp" else "attention"
                origins = [origin for _, origin in pairs if origin]
                self._add_creation(self.arch.full(layer, writer.name), kind, [trace for trace, _ in pairs], origins)
        return {"layer": layer, **result}

    def _measure_window(
        self, layer: int, window: int, block: nn.Module, hidden: Tensor, meter: BlockMeter, created: Created
    ) -> Tensor:
        """Run one window through a block; returns the stream [S, hidden] after it."""
        capture = BlockCapture(layer, window, self.tokens[window], hidden)
        out = run_and_capture(self.runner, block, self.arch, capture, self.subject.cache(layer))
        streams = [capture.before, *capture.states.values()]
        masks = {
            norm: self.store.add(self.arch.full(layer, norm), stream, self.windows)
            for norm, stream in zip(self.norms, streams)
        }
        meter.add(capture, masks)
        for index, writer in enumerate(self.writers):
            for trace in self.tracker.add(window, capture.states[writer.name], index - len(self.writers)):
                self.ablation.start(window, capture.before)
                explain = len(created[writer.name]) < MAX_ORIGINS
                origin = attribute_entry(capture, block, self.arch, writer, trace) if explain else {}
                created[writer.name].append((trace, origin))
        if window == 0:
            self._add_maps(layer, capture)
        return out

    def _add_maps(self, layer: int, capture: BlockCapture) -> None:
        """Keep the pictures of a block: its output, and for the middle block its inputs."""
        writer = self.writers[-1]
        self.state_maps[self.arch.full(layer, writer.name)] = maps.pool_magnitudes(capture.states[writer.name])
        if layer == self.arch.n_layers // 2:
            self.map_rows = normalise(capture.before[:MAP_ROWS], self.eps)
            for tap in self.arch.taps():
                self.input_maps[self.arch.full(layer, tap.name)] = maps.pool_magnitudes(capture.taps[tap.name])

    def _run_ablation(self, layer: int, block: nn.Module, created: Created) -> None:
        """Run the second stream through the block, with the attributed weights set to zero. Changes the block."""
        if self.ablation.hidden is None or not self.settings.ablate:
            return
        places = {name: _attributed_weights(pairs) for name, pairs in created.items()}
        if any(places.values()):
            zero_weights(block, places)
            self.ablation.removed += [
                f"{self.arch.full(layer, name)}: {len(entries)} weights" for name, entries in places.items() if entries
            ]
        window = self.ablation.window
        capture = BlockCapture(layer, window, self.tokens[window], self.ablation.hidden)
        self.ablation.hidden = run_and_capture(self.runner, block, self.arch, capture, self.subject.cache(layer))
        for writer in self.writers:
            self.ablation.count_massive(self.arch.full(layer, writer.name), capture.states[writer.name])

    def _ablation_report(self, hidden: list[Tensor]) -> dict[str, Any] | None:
        """Whether massive activations disappear without their sources, and what that costs; None without any."""
        ablation = self.ablation
        if ablation.hidden is None or not self.settings.ablate:
            return None
        tokens = self.tokens[ablation.window]
        losses = [window_nll(self.runner, x, tokens) for x in (hidden[ablation.window], ablation.hidden)]
        return {
            "window": ablation.window,
            "removed": ablation.removed,
            "massive_left": ablation.massive_left,
            "confirmed": not any(ablation.massive_left.values()),
            "perplexity": [float(torch.tensor(min(loss, MAX_LOSS), dtype=torch.float64).exp()) for loss in losses],
        }


def _attributed_weights(pairs: list[tuple[Trace, dict[str, Any]]]) -> list[tuple[int, int]]:
    """(row, column) of the weights that origins name."""
    return sorted({(origin["channel"], term["column"]) for _, origin in pairs if origin for term in origin["terms"]})
