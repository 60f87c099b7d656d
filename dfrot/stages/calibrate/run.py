"""`dfq calibrate`: run a checkpoint block by block on text and keep what quantization needs to know.

One block is in memory at a time. Ranks share the samples, in chunks; each tap belongs to a rank, which adds up the
chunks' Hessians in their order. The unit of resumption is a block: its statistics and the hidden states behind it
are durable before the journal names it, and the hidden states are read back from the file also when nothing was
interrupted, so that a resumed run computes with the very same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import Tap
from dfrot.calib import calibration as store
from dfrot.calib.collect_stats import EXPERT_ROWS, SAMPLE_ROWS, sampling_ranks
from dfrot.calib.hidden_states import HiddenStates, remove_hidden_states
from dfrot.calib.shared_statistics import SharedStatistics
from dfrot.calib.stats import CalibStats
from dfrot.calib.taps import observe_taps, samples_per_chunk
from dfrot.files import require_free_space
from dfrot.lineage import source_record
from dfrot.processor import onednn_products
from dfrot.progress import Progress, silent
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Stage, read_record, refuse_inputs
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
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the calibration of the checkpoint `model` as the folder `out`; returns its `stage.json`.

    ranks: processes that share the work, each calling this with the same arguments; the bytes do not depend on them.
    Raises InputError for a dataset that is too short or a damaged checkpoint, ExistsError when `out` exists.
    """
    refuse_inputs(out, model)
    plan = plan_calibration(model, settings)
    require_free_space(out.parent, plan.nbytes)
    with open_shared_stage(ranks, out, KIND, plan.request, resume, overwrite) as stage:
        if not stage.finished:
            if ranks.first:
                store.save_tensors(stage.folder, "tokens", {"tokens": plan.tokens})
            summary = _BlockwiseCalibration(stage, plan, ranks).run(progress) if settings.statistics else {}
            if ranks.first:
                remove_hidden_states(stage.folder)
            record = {"taps": summary, **plan.checkpoint.resolution(), **source_record(plan.checkpoint.path)}
            stage.publish(record)
    return read_record(out, KIND)


class _BlockwiseCalibration:
    """Blocks in order, then the head; each leaves its statistics and the hidden states that the next one reads."""

    def __init__(self, stage: Stage, plan: CalibratePlan, ranks: Ranks) -> None:
        self.ranks = ranks
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
                if self.ranks.first:
                    store.save_stats(self.stage.folder, stem, stats)
                self.stage.mark(stem, {tap: value.summary() for tap, value in stats.items()})
                if self.ranks.first:
                    self._hidden(number).remove()
        progress(KIND, total, total)
        summary = {}
        for number, stem in enumerate(stems):
            for tap, value in self.stage.recall(stem).items():
                summary[tap if stem == store.HEAD else self.arch.full(number, tap)] = value
        return summary

    def _hidden(self, layer: int) -> HiddenStates:
        return HiddenStates(self.stage.folder, layer, self.shape)

    def _rounds(self) -> Iterator[range | None]:
        """In each round the samples of this rank's chunk, which run together; None where there is none."""
        starts = range(0, self.shape[0], self.step)
        for number in self.ranks.rounds(len(starts)):
            yield None if number is None else range(self.shape[0])[starts[number] : starts[number] + self.step]

    def _prepared(self, hidden: HiddenStates) -> HiddenStates:
        """Hidden states whose file is there, so that every rank can write its samples into it."""
        if self.ranks.first:
            hidden.prepare()
        self.ranks.barrier()
        return hidden

    def _embed(self) -> None:
        if self.stage.done("embed"):
            return
        first = self._prepared(self._hidden(0))
        for samples in self._rounds():
            if samples is not None:
                first.write(samples.start, self.runner.embed(self.tokens[samples.start : samples.stop]))
        first.sync()
        self.stage.mark("embed")

    @torch.no_grad()
    def _block(self, layer: int) -> dict[str, CalibStats]:
        """Statistics of the taps of one block; writes the hidden states behind it."""
        taps = self.arch.taps()
        widths = store.tap_widths(self.arch, store.block_stem(layer))
        sizes = {tap.name: EXPERT_ROWS if tap.expert is not None else SAMPLE_ROWS for tap in taps}
        statistics = SharedStatistics(self.ranks, widths, sizes, self.rank, self.settings.hessians)
        first_token = 0  # of the chunk that runs

        def collect(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            every = slice(first_token, first_token + x.shape[:-1].numel())
            statistics.add(tap.name, x, every if rows is None else rows + first_token)

        block, source = self.runner.block(layer), self._hidden(layer)
        target = self._prepared(self._hidden(layer + 1))
        with observe_taps(block, taps, collect):
            for samples in self._rounds():
                if samples is not None:
                    first_token = samples.start * self.shape[1]
                    target.write(samples.start, self.runner.run(block, source.read(samples.start, samples.stop)))
                statistics.end_round()
        target.sync()
        return statistics.collected()

    @torch.no_grad()
    def _head(self, layer: int) -> dict[str, CalibStats]:
        """Statistics of the head's input; `layer` is the number behind the last block."""
        name, source = self.arch.spec.head.name, self._hidden(layer)
        statistics = SharedStatistics(
            self.ranks, {name: self.arch.hidden}, {name: SAMPLE_ROWS}, self.rank, self.settings.hessians
        )
        for samples in self._rounds():
            if samples is not None:
                tokens = slice(samples.start * self.shape[1], samples.stop * self.shape[1])
                statistics.add(name, self.runner.normed(source.read(samples.start, samples.stop)), tokens)
            statistics.end_round()
        return statistics.collected()
