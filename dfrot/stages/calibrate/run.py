"""`dfq calibrate`: run a checkpoint block by block on text and keep what quantization needs to know.

One block is in memory at a time. The unit of resumption is a block: its statistics and the hidden states behind it
are durable before the journal names it, and the hidden states are read back from the file also when nothing was
interrupted, so that a resumed run computes with the very same bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Tap, open_described
from dfrot.calib import calibration as store
from dfrot.calib.hidden_states import HiddenStates, remove_hidden_states
from dfrot.calib.observe import (
    EXPERT_ROWS,
    SAMPLE_ROWS,
    StatsCollector,
    observe_taps,
    samples_per_chunk,
    sampling_ranks,
)
from dfrot.calib.stats import CalibStats
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import calibration_windows, load_text
from dfrot.errors import InputError, MismatchError
from dfrot.files import require_free_space
from dfrot.stage_folder import Progress, Stage, open_stage, read_record, silent
from dfrot.stages.calibrate.settings import CalibrateSettings

KIND = "calibrate"


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

    Raises InputError for a dataset that is too short or a damaged checkpoint, ExistsError when `out` is there.
    """
    from dfrot.data.tokenizer import encode, load_tokenizer

    checkpoint, arch = open_described(model)
    text = load_text(settings.dataset, "train")
    ids = encode(load_tokenizer(checkpoint.path), text.text)
    tokens = calibration_windows(ids, settings.samples, settings.seqlen, settings.seed)
    name = settings.dataset if not Path(settings.dataset).exists() else Path(settings.dataset).name
    request = {
        "model": checkpoint.digest(),
        "tokens": store.tokens_digest(tokens),
        "text": text.digest,
        "settings": {**asdict(settings), "dataset": name},  # a path would tie the result to this machine
    }
    return _publish(checkpoint, arch, tokens, out, settings, request, progress, resume, overwrite)


def _publish(
    checkpoint: Checkpoint,
    arch: BoundArch,
    tokens: Tensor,
    out: Path,
    settings: CalibrateSettings,
    request: dict[str, Any],
    progress: Progress,
    resume: bool | None,
    overwrite: bool,
) -> dict[str, Any]:
    require_free_space(out.parent, _disk(arch, tokens, settings.hessians))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            store.save_tensors(stage.folder, "tokens", {"tokens": tokens})
            summary = _Run(stage, checkpoint, arch, tokens, settings).all(progress) if settings.statistics else {}
            remove_hidden_states(stage.folder)
            stage.publish({"taps": summary})
    return read_record(out, KIND)


def _disk(arch: BoundArch, tokens: Tensor, hessians: bool) -> int:
    """Bytes of the result and of the hidden states on the way."""
    hidden = 2 * HiddenStates.nbytes((*tokens.shape, arch.hidden))
    sizes = [width for stem in store.file_stems(arch) for width in store.tap_widths(arch, stem).values()]
    return hidden + 8 * tokens.numel() + sum((4 * k * k if hessians else 0) + 4 * k + 8192 for k in sizes)


class _Run:
    """One calibration: blocks in order, then the head."""

    def __init__(
        self, stage: Stage, checkpoint: Checkpoint, arch: BoundArch, tokens: Tensor, settings: CalibrateSettings
    ) -> None:
        from dfrot.runtime.block_runner import BlockRunner

        self.stage, self.arch, self.tokens, self.settings = stage, arch, tokens, settings
        self.runner = BlockRunner(checkpoint, arch)
        self.shape = (tokens.shape[0], tokens.shape[1], arch.hidden)
        self.step = samples_per_chunk(arch, tokens.shape[1])
        self.rank = sampling_ranks(tokens.numel(), settings.seed)

    def hidden(self, layer: int) -> HiddenStates:
        return HiddenStates(self.stage.folder, layer, self.shape)

    def chunks(self) -> range:
        return range(0, self.shape[0], self.step)

    def all(self, progress: Progress) -> dict[str, Any]:
        """Everything that is not done yet; returns the summaries by full tap name."""
        total = self.arch.n_layers + 1
        if not self.stage.done("embed"):
            first = self.hidden(0)
            for begin in self.chunks():
                first.write(begin, self.runner.embed(self.tokens[begin : begin + self.step]))
            first.sync()
            self.stage.mark("embed")
        for number, stem in enumerate(store.file_stems(self.arch)):
            progress(KIND, number, total)
            if not self.stage.done(stem):
                stats = self.head(number) if stem == store.HEAD else self.block(number)
                store.save_stats(self.stage.folder, stem, stats)
                self.stage.mark(stem, {tap: one.summary() for tap, one in stats.items()})
                self.hidden(number).remove()
        progress(KIND, total, total)
        summary = {}
        for number, stem in enumerate(store.file_stems(self.arch)):
            for tap, value in self.stage.recall(stem).items():
                summary[tap if stem == store.HEAD else self.arch.full(number, tap)] = value
        return summary

    def observer(self, width: int, expert: bool = False) -> StatsCollector:
        return StatsCollector(width, self.rank, self.settings.hessians, EXPERT_ROWS if expert else SAMPLE_ROWS)

    @torch.no_grad()
    def block(self, layer: int) -> dict[str, CalibStats]:
        taps = self.arch.taps()
        widths = store.tap_widths(self.arch, store.block_stem(layer))
        observers = {tap.name: self.observer(widths[tap.name], tap.expert is not None) for tap in taps}

        done = 0  # tokens of the chunks before

        def collect(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            observers[tap.name].add(x, None if rows is None else rows + done)

        block, source, target = self.runner.block(layer), self.hidden(layer), self.hidden(layer + 1)
        with observe_taps(block, taps, collect):
            for begin in self.chunks():
                done = begin * self.shape[1]
                target.write(begin, self.runner.run(block, source.read(begin, begin + self.step)))
        target.sync()
        return {name: observer.stats() for name, observer in observers.items()}

    @torch.no_grad()
    def head(self, layer: int) -> dict[str, CalibStats]:
        observer, source = self.observer(self.arch.hidden), self.hidden(layer)
        for begin in self.chunks():
            observer.add(self.runner.normed(source.read(begin, begin + self.step)))
        return {self.arch.spec.head.name: observer.stats()}


def merge(
    model: Path,
    parts: list[Path],
    out: Path,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the calibrations `parts`, all made on `model`, as one: as if their samples had been run together
    (the percentiles and clip ratios come from the union of the samples).

    Raises MismatchError when they belong to other checkpoints, differ in sequence length, or one is given twice.
    """
    if len(parts) < 2:
        raise InputError("merging calibrations needs two or more of them")
    checkpoint, arch = open_described(model)
    digest = checkpoint.digest()
    opened = [store.Calibration.open(path, arch, digest) for path in parts]
    batches = [one.tokens() for one in opened]
    if len({batch.shape[1] for batch in batches}) > 1:
        raise MismatchError("calibrations of different --seqlen cannot be merged")
    if len({store.tokens_digest(batch) for batch in batches}) < len(parts):
        raise MismatchError("the same tokens were calibrated twice; merge calibrations with different --seed")
    tokens = torch.cat(batches)
    request = {
        "model": digest,
        "tokens": store.tokens_digest(tokens),
        "merged": [one.record["request"] for one in opened],
    }
    require_free_space(out.parent, _disk(arch, tokens, True))
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            store.save_tensors(stage.folder, "tokens", {"tokens": tokens})
            summary: dict[str, Any] = {}
            names = store.file_stems(arch)
            for number, stem in enumerate(names):
                progress("merge", number, len(names))
                merged = opened[0].stats(stem)
                for other in opened[1:]:
                    more = other.stats(stem)
                    merged = {tap: one.merge(more[tap]) for tap, one in merged.items()}
                store.save_stats(stage.folder, stem, merged)
                for tap, one in merged.items():
                    summary[tap if stem == store.HEAD else arch.full(number, tap)] = one.summary()
            stage.publish({"taps": summary})
    return read_record(out, KIND)
