"""`dfq quantize`: a 16-bit (usually rotated) checkpoint in, packed integers out.

The unit of resumption is a block: its packed tensors lie in the shards, and the hidden states that the next block
starts from are durable, before the journal names it.

Where errors propagate, ranks share the samples of every block (propagate.py); else whole blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import untie_config
from dfrot.calib import calibration as store
from dfrot.calib.hidden_states import HiddenStates, remove_hidden_states
from dfrot.calib.stats import CalibStats
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import InputError
from dfrot.files import require_free_space, write_json
from dfrot.lineage import lineage, source_record
from dfrot.processor import onednn_products
from dfrot.progress import Progress, silent
from dfrot.quant import algorithm
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import key_shift_name
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.grid import Quantized
from dfrot.quant.rounding.rtn import starved
from dfrot.quant.rounding.travel import from_plain, to_plain
from dfrot.quant.second_rows import most_frequent
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.transformers_model import TOKENS, compare_with_transformers
from dfrot.stage_folder import Stage, read_record, refuse_inputs
from dfrot.stages.quantize.budget import budget_record, with_budget
from dfrot.stages.quantize.compensate import ExactRun
from dfrot.stages.quantize.effort import tune_quantized
from dfrot.stages.quantize.embedding import RoundedRows, grid_scheme, quantize_embedding
from dfrot.stages.quantize.key_shift import make_key_shifts, remove_key_shifts
from dfrot.stages.quantize.plan import QuantizePlan, plan_quantization
from dfrot.stages.quantize.propagate import head_hessian, quantize_block
from dfrot.stages.quantize.second_rows import stacked
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.quantize.waiting import allowed
from dfrot.vision import carry as vision

KIND = "quantize"


@onednn_products()
def quantize(
    model: Path,
    calibration: Path | None,
    out: Path,
    settings: QuantizeSettings,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the quantized checkpoint of `model` as the folder `out`; returns its `stage.json`.

    `calibration` is a result of `calibrate` on this very checkpoint (MismatchError otherwise); rounding without
    automatic activation clipping needs none. ranks: processes that share the work, each calling this with the same
    arguments; the bytes do not depend on them. Raises InputError or UnsupportedError before any work for what cannot
    be done, and at the tensor concerned for damaged weights.
    """
    refuse_inputs(out, model, calibration)
    plan = plan_quantization(model, calibration, settings)
    require_free_space(out.parent, plan.nbytes)
    with open_shared_stage(ranks, out, KIND, plan.request, resume, overwrite) as stage:
        if not stage.finished:
            if ranks.first:
                _compare_source(plan, progress)
            plan = with_budget(stage, plan, ranks, progress)
            linears = _BlockwiseQuantization(stage, plan, ranks).run(progress)
            if ranks.first:
                remove_hidden_states(stage.folder)
                remove_key_shifts(stage.folder)
                _write_config(plan, stage.folder)
            tuned = tune_quantized(stage, plan.layout, plan.tuning, ranks, progress) if plan.tuning is not None else {}
            if ranks.first:
                vision.carry_vision_part(plan.checkpoint.path, stage.folder)
            origin = {**plan.checkpoint.resolution(), **source_record(model), "lineage": lineage(model)}
            stage.publish({**_record(plan, linears), **budget_record(stage, plan), **tuned, **origin})
    return read_record(out, KIND)


def _compare_source(plan: QuantizePlan, progress: Progress) -> None:
    """Raise GateError where dfq reads a source otherwise than transformers; what dfq rotated passed that before."""
    if DfqConfig.of(plan.checkpoint.config) is None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, plan.arch.vocab_size, (1, TOKENS), generator=generator)
        compare_with_transformers(plan.checkpoint, plan.arch, tokens, progress)


def _write_config(plan: QuantizePlan, folder: Path) -> None:
    """Write config.json, and copy the tokenizer's files."""
    config = copy.deepcopy(plan.checkpoint.config)
    config["quantization_config"] = plan.config.to_dict()
    if plan.arch.tied and plan.arch.spec.head.name in plan.layout.quantized:
        config = untie_config(config)  # the head has its own integers now
    write_json(folder / "config.json", config)
    copy_tokenizer(plan.checkpoint.path, folder)


def _record(plan: QuantizePlan, linears: dict[str, Any]) -> dict[str, Any]:
    """What `stage.json` says of the result; linears: statistics by full linear name."""
    few_tokens = plan.few_tokens
    return {
        "scheme": plan.settings.scheme.name,
        "compensation": plan.settings.compensation,
        **({"key_shift": plan.config.key_shift} if plan.config.shifts_keys else {}),
        "linears": linears,
        "fallbacks": {name: stats["fallback"] for name, stats in linears.items() if "fallback" in stats},
        **({} if few_tokens is None else {"notes": [few_tokens]}),
        "sizes": plan.layout.sizes(),
    }


class _BlockwiseQuantization:
    """Dense tensors, blocks in order, then the head."""

    def __init__(self, stage: Stage, plan: QuantizePlan, ranks: Ranks) -> None:
        assert plan.config.scheme is not None
        self.ranks = ranks
        self.stage, self.plan = stage, plan
        self.arch, self.layout = plan.arch, plan.layout
        self.scheme, self.options = plan.config.scheme, plan.settings.options()
        self.algorithm = algorithm(plan.settings.algorithm)
        self.key_shifts: dict[str, Tensor] = {}
        self.memory = allowed(plan.settings.memory, ranks.size)
        self.quantize_together = self.algorithm.load()
        if ranks.first:
            self.writer = SafetensorsWriter(stage.folder, plan.layout.plan(), stored=plan.arch.written)
        if plan.propagates:
            assert plan.calibration is not None
            self.tokens = plan.calibration.tokens()
            self.runner = BlockRunner(plan.checkpoint, plan.arch)

    def run(self, progress: Progress) -> dict[str, Any]:
        """Everything that is not done yet; returns the statistics by full linear name."""
        units = store.file_stems(self.arch)
        if not all(self.stage.done(unit) for unit in ("dense", *units)):  # else their file may be gone already
            self.key_shifts = make_key_shifts(self.stage, self.plan, self.ranks, progress)
        self._write_dense()
        linears: dict[str, Any] = dict(self.stage.recall("dense") or {})
        numbers = [number for number, unit in enumerate(units) if not self.stage.done(unit)]
        together = 1 if self.plan.propagates else self.ranks.size
        for begin in range(0, len(numbers), together):
            batch = numbers[begin : begin + together]
            progress(KIND, batch[0], len(units))
            for number, results in zip(batch, self._units(batch)):
                self._finish(number, units[number], results)
        progress(KIND, len(units), len(units))
        for unit in units:
            linears.update(self.stage.recall(unit))
        return linears

    def _units(self, numbers: list[int]) -> list[dict[str, Quantized]]:
        """The results for the units of these numbers, on the first rank."""
        quantized = [self._head if number == self.arch.n_layers else self._block for number in numbers]
        if self.plan.propagates:
            return [quantized[0](numbers[0])]
        rank = self.ranks.rank
        own = quantized[rank](numbers[rank]) if rank < len(numbers) else {}
        gathered = self.ranks.gather({name: to_plain(result) for name, result in own.items()})
        if not self.ranks.first:
            return [{} for _ in numbers]
        return [{name: from_plain(plain) for name, plain in part.items()} for part in gathered[: len(numbers)]]

    def _finish(self, number: int, unit: str, results: dict[str, Quantized]) -> None:
        """Store the results of a unit, and remove what it started from."""
        if self.ranks.first:
            for name, result in results.items():
                self.layout.write(self.writer, name, result)
            self.writer.sync()
        self.stage.mark(unit, {name: result.stats for name, result in results.items()})
        if self.plan.propagates and self.ranks.first:
            for stream in self._streams(number):
                stream.remove()

    def _write_dense(self) -> None:
        """Copy all tensors that stay as they are, and round the embedding; embed the tokens where errors propagate."""
        if self.stage.done("dense"):
            return
        stats = self._dense() if self.ranks.first else None
        self.stage.mark("dense", stats)

    def _dense(self) -> dict[str, Any] | None:
        """What the first rank does of `_write_dense`; returns statistics of the embedding."""
        embed, rounded, stats = self.arch.spec.embed, None, None
        self.layout.copy_dense(self.plan.checkpoint, self.writer)
        if embed in self.layout.quantized:
            ids = torch.unique(self.tokens) if self.plan.propagates else torch.empty(0, dtype=torch.int64)
            table, rounded = quantize_embedding(self.layout, self.writer, self.options, ids)
            stats = {embed: table}
        for name, shift in self.key_shifts.items():
            self.writer.write(name, shift)
        if self.plan.propagates:
            self._write_streams(rounded)
        self.writer.sync()
        return stats

    def _write_streams(self, rounded: RoundedRows | None) -> None:
        """The hidden states before the first block. rounded: of the quantized model; None: as the source embeds."""
        for number, stream in enumerate(self._streams(0)):
            for begin in range(self.tokens.shape[0]):
                tokens = self.tokens[begin : begin + 1]
                hidden = self.runner.embed(tokens)  # also checks the ids
                if rounded is not None and not number:
                    hidden = rounded.embed(tokens, self.arch.scalar("embed"))
                stream.write(begin, hidden)
            stream.sync()

    def _streams(self, layer: int) -> list[HiddenStates]:
        """The hidden states before a block: of the quantized model and, to compensate, of the source model."""
        shape = (*self.tokens.shape, self.arch.hidden)
        names = ["", "exact-"] if self.plan.compensation else [""]
        return [HiddenStates(self.stage.folder, layer, shape, name) for name in names]

    def _round(
        self,
        weights: Sequence[Tensor],
        hessian: Tensor | None,
        reason: str | None = None,
        ranks: Ranks = SINGLE,
        source: int = 0,
        table: LinearPlan | None = None,
    ) -> list[Quantized]:
        """Quantize weights that share an input. reason: why they are rounded to nearest in place of the algorithm.
        ranks: share the rows, with the values of rank `source`. table: the plan of a head, which has a grid of its
        own."""
        scheme = self.scheme if table is None else grid_scheme(table, self.scheme)
        if reason is not None:
            return rtn.fallback(weights, scheme, self.options, reason)
        return self.quantize_together(weights, hessian, scheme, self.options, ranks, source)

    def _block(self, layer: int) -> dict[str, Quantized]:
        """Results by full linear name."""
        if not self.plan.rounds:
            return {}
        if self.plan.propagates:
            (source, *exact_source), (target, *exact_target) = self._streams(layer), self._streams(layer + 1)
            strength = self.plan.compensation
            exact = ExactRun(exact_source[0], exact_target[0], strength) if strength else None
            shift = self.key_shifts.get(key_shift_name(self.arch, layer))
            streams = (source, target, exact, shift)
            return quantize_block(
                self.runner, layer, self.plan.config, self._round, *streams, self.ranks, memory=self.memory
            )
        calibrated = self._calibrated(store.block_stem(layer))
        results: dict[str, Quantized] = {}
        for tap in self.arch.taps():
            names = [self.arch.full(layer, linear.name) for linear in tap.linears]
            names = [name for name in names if name not in self.plan.config.keep]
            stats = calibrated.get(tap.name)
            reason = starved(stats.count, len(stats.absmax)) if stats is not None and tap.expert is not None else None
            results.update(self._round_stored(names, stats.hessian if stats is not None else None, reason))
        return results

    def _head(self, layer: int) -> dict[str, Quantized]:
        """The head's result; `layer` is the number behind the last block."""
        name = self.arch.spec.head.name
        if name not in self.layout.quantized:
            return {}
        ranks = self.ranks if self.plan.propagates else SINGLE
        if self.plan.propagates:
            hessian = head_hessian(self.runner, self.plan.config, self._streams(layer)[0], ranks)
        else:
            stats = self._calibrated(store.HEAD).get(name)
            hessian = stats.hessian if stats is not None else None
        results = self._round_stored([name], hessian, table=self.layout.quantized[name], ranks=ranks)
        if self.plan.config.head.second_rows and ranks.first:
            results[name] = self._with_second_rows(name, results[name], hessian)
        return results

    def _with_second_rows(self, name: str, first: Quantized, hessian: Tensor | None) -> Quantized:
        """The head with second rows for what `first` leaves of the most frequent tokens of the calibration."""
        assert self.plan.calibration is not None
        table = self.layout.quantized[name]
        ids = most_frequent(self.plan.calibration.tokens(), table.rows, table.second_rows)
        weight = self.plan.checkpoint.read(f"{self.layout.stored(name)}.weight").float()
        rest = (weight - first.dequantize())[ids.long()]
        (second,) = self._round([rest], hessian, table=table)
        return stacked(weight, first, second, ids, hessian)

    def _calibrated(self, stem: str) -> dict[str, CalibStats]:
        """The calibration's statistics by tap, with Hessians, when the algorithm wants them.

        Raises InputError when it holds none."""
        calibration = self.plan.calibration
        if calibration is None or not self.algorithm.needs_hessian:
            return {}
        stats = calibration.stats(stem)
        if any(value.hessian is None for value in stats.values()):
            raise InputError(
                f"{calibration.path}: holds no Hessians; calibrate with them, or propagate errors",
                file=calibration.path,
            )
        return stats

    def _round_stored(
        self,
        names: list[str],
        hessian: Tensor | None,
        reason: str | None = None,
        table: LinearPlan | None = None,
        ranks: Ranks = SINGLE,
    ) -> dict[str, Quantized]:
        """Quantize the linears `names` of one tap, with their weights as the checkpoint stores them. ranks: share the
        rows, with the first one's Hessian."""
        if not names:
            return {}
        stored = (self.plan.checkpoint.read(f"{self.layout.stored(name)}.weight") for name in names)
        weights = [weight.float() for weight in stored]
        return dict(zip(names, self._round(weights, hessian, reason, ranks, table=table)))
