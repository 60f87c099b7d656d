"""`dfq calibrate`: run a checkpoint block by block on text and keep what quantization needs to know.

One block is in memory at a time. The unit of resumption is a block: its statistics and the hidden states behind it
are durable before the journal names it, and the hidden states are read back from the file also when nothing was
interrupted, so that a resumed run computes with the very same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import Tap
from dfrot.calib import calibration as store
from dfrot.calib.collect_stats import EXPERT_ROWS, SAMPLE_ROWS, StatsCollector, sampling_ranks
from dfrot.calib.hidden_states import HiddenStates, remove_hidden_states
from dfrot.calib.stats import CalibStats
from dfrot.calib.taps import observe_taps, samples_per_chunk
from dfrot.files import require_free_space
from dfrot.lineage import source_record
from dfrot.processor import onednn_products
from dfrot.progress import Progress, silent
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage, open_stage, read_record
from dfrot.stages.calibrate.plan import CalibratePlan, plan_calibration
from dfrot.stages.calibrate.settings import CalibrateSettings

KIND = "calibrate"


@onednn_products()
def calibrate(
    model: Path,
    out: Path,
    settings: CalibrateSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the calibration of the checkpoint `model` as the folder `out`; returns its `stage.json`.

    Raises InputError for a dataset that is too short or a damaged checkpoint, ExistsError when `out` exists.
    """
    plan = plan_calibration(model, settings)
    require_free_space(out.parent, plan.nbytes)
    with open_stage(out, KIND, plan.request, resume, overwrite) as stage:
        if not stage.finished:
            store.save_tensors(stage.folder, "tokens", {"tokens": plan.tokens})
            summary = _BlockwiseCalibration(stage, plan).run(progress) if settings.statistics else {}
            remove_hidden_states(stage.folder)
            record = {"taps": summary, **plan.checkpoint.resolution(), **source_record(plan.checkpoint.path)}
            stage.publish(record)
    return read_record(out, KIND)


class _BlockwiseCalibration:
    """Blocks in order, then the head; each leaves its statistics and the hidden states that the next one reads."""

    def __init__(self, stage: Stage, plan: CalibratePlan) -> None:
        self.stage, self.arch, self.tokens, self.settings = stage, plan.arch, plan.tokens, plan.settings
        self.runner = BlockRunner(plan.checkpoint, plan.arch)
        self.shape = (plan.tokens.shape[0], plan.tokens.shape[1], plan.arch.hidden)
        self.step = samples_per_chunk(plan.arch, plan.tokens.shape[1])
        self.rank = sampling_ranks(plan.tokens.numel(), plan.settings.seed)

    def run(self, progress: Progress) -> dict[str, Any]:
        """Everything that is not done yet; returns the summaries by full tap name."""
        total = self.arch.n_layers + 1
        self._embed()
        stems = store.file_stems(self.arch)
        for number, stem in enumerate(stems):
            progress(KIND, number, total)
            if not self.stage.done(stem):
                stats = self._head(number) if stem == store.HEAD else self._block(number)
                store.save_stats(self.stage.folder, stem, stats)
                self.stage.mark(stem, {tap: value.summary() for tap, value in stats.items()})
                self._hidden(number).remove()
        progress(KIND, total, total)
        summary = {}
        for number, stem in enumerate(stems):
            for tap, value in self.stage.recall(stem).items():
                summary[tap if stem == store.HEAD else self.arch.full(number, tap)] = value
        return summary

    def _hidden(self, layer: int) -> HiddenStates:
        return HiddenStates(self.stage.folder, layer, self.shape)

    def _chunks(self) -> range:
        """First samples of the chunks that run together."""
        return range(0, self.shape[0], self.step)

    def _embed(self) -> None:
        if self.stage.done("embed"):
            return
        first = self._hidden(0)
        for begin in self._chunks():
            first.write(begin, self.runner.embed(self.tokens[begin : begin + self.step]))
        first.sync()
        self.stage.mark("embed")

    def _collector(self, width: int, expert: bool = False) -> StatsCollector:
        return StatsCollector(width, self.rank, self.settings.hessians, EXPERT_ROWS if expert else SAMPLE_ROWS)

    @torch.no_grad()
    def _block(self, layer: int) -> dict[str, CalibStats]:
        """Statistics of the taps of one block; writes the hidden states behind it."""
        taps = self.arch.taps()
        widths = store.tap_widths(self.arch, store.block_stem(layer))
        collectors = {tap.name: self._collector(widths[tap.name], tap.expert is not None) for tap in taps}

        first_token = 0  # of the chunk that runs

        def collect(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            collectors[tap.name].add(x, None if rows is None else rows + first_token)

        block, source, target = self.runner.block(layer), self._hidden(layer), self._hidden(layer + 1)
        with observe_taps(block, taps, collect):
            for begin in self._chunks():
                first_token = begin * self.shape[1]
                target.write(begin, self.runner.run(block, source.read(begin, begin + self.step)))
        target.sync()
        return {name: collector.stats() for name, collector in collectors.items()}

    @torch.no_grad()
    def _head(self, layer: int) -> dict[str, CalibStats]:
        """Statistics of the head's input; `layer` is the number behind the last block."""
        collector, source = self._collector(self.arch.hidden), self._hidden(layer)
        for begin in self._chunks():
            collector.add(self.runner.normed(source.read(begin, begin + self.step)))
        return {self.arch.spec.head.name: collector.stats()}
