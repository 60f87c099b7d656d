"""`dfq quantize`: a 16-bit (usually rotated) checkpoint in, packed integers out.

The unit of resumption is a block: its packed tensors lie in the shards, and the hidden states that the next block
starts from are durable, before the journal names it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.arch import BoundArch, describe, untie_config, with_described_names
from dfrot.calib import calibration as store
from dfrot.calib.hidden_states import HiddenStates, remove_hidden_states
from dfrot.calib.stats import CalibStats
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import InputError, UnsupportedError
from dfrot.files import require_free_space, write_json
from dfrot.lineage import lineage
from dfrot.quant import Algorithm, algorithm, keep, rtn
from dfrot.quant.config import DfqConfig
from dfrot.quant.grid import Quantized
from dfrot.quant.resets import Reset
from dfrot.quant.rtn import starved
from dfrot.quant.scheme import FULL
from dfrot.rotation.online import OnlineRotations
from dfrot.stage_folder import Progress, Stage, open_stage, read_record, silent
from dfrot.stages.quantize.layout import Layout
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.vision import carry as vision
from dfrot.vision.llava_layout import has_vision_part, vision_digest

KIND = "quantize"


def quantize(
    model: Path,
    calibration: Path | None,
    out: Path,
    settings: QuantizeSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the quantized checkpoint of `model` as the folder `out`; returns its `stage.json`.

    `calibration` is a result of `calibrate` on this very checkpoint (MismatchError otherwise); rounding without
    automatic activation clipping needs none. Raises InputError or UnsupportedError before any work for what cannot
    be done, and at the tensor concerned for damaged weights.
    """
    checkpoint, arch, online = _source(model)
    digest = checkpoint.digest()
    found = store.Calibration.open(calibration, arch, digest) if calibration is not None else None
    if found is None and settings.needs_calibration():
        what = "activation clip auto" if settings.a_clip == "auto" else f"algorithm {settings.algorithm}"
        raise InputError(f"{what} needs a calibration: run dfq calibrate and pass --calibration, or use rtn")
    config = replace(_config(arch, online, settings, found), resets=_resets(checkpoint))
    layout = Layout(checkpoint, arch, config)
    request = {
        "model": digest,
        "calibration": found.digest if found is not None and settings.needs_calibration() else None,
        "settings": asdict(settings),
    }
    if has_vision_part(checkpoint.path):
        request["vision"] = vision_digest(checkpoint.path)
    hidden = 4 * HiddenStates.nbytes((*found.tokens().shape, arch.hidden)) if found is not None else 0
    require_free_space(out.parent, layout.nbytes + hidden)
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            work = _Work(stage, checkpoint, arch, config, layout, settings, found)
            linears = work.all(progress)
            remove_hidden_states(stage.folder)
            _copy_rest(checkpoint, config, arch, stage.folder)
            vision.carry_vision_part(checkpoint.path, stage.folder)
            stage.publish({**_evidence(layout, settings, linears), "lineage": lineage(model)})
    return read_record(out, KIND)


def _source(model: Path) -> tuple[Checkpoint, BoundArch, OnlineRotations]:
    """Open what is to be quantized. Raises UnsupportedError when that has been done already."""
    checkpoint = Checkpoint.open(model)
    where = str(checkpoint.path / "config.json")
    entry = DfqConfig.of(checkpoint.config, where)
    if entry is not None and entry.scheme is not None:
        raise UnsupportedError(f"{model}: is quantized already; give the 16-bit checkpoint")
    arch = describe(checkpoint.config, where)
    checkpoint = with_described_names(checkpoint, arch)
    arch.check(checkpoint)
    return checkpoint, arch, entry.online if entry is not None else OnlineRotations()


def _resets(checkpoint: Checkpoint) -> tuple[Reset, ...]:
    """Those of the source go on working in the result."""
    entry = DfqConfig.of(checkpoint.config)
    return entry.resets if entry is not None else ()


def _config(
    arch: BoundArch, online: OnlineRotations, settings: QuantizeSettings, found: store.Calibration | None
) -> DfqConfig:
    """What the result's config.json will say."""
    scheme = settings.scheme
    if isinstance(settings.a_clip, float | int):
        scheme = replace(scheme, a_clip=float(settings.a_clip))
    if scheme.kv_bits != FULL and arch.head_dim * scheme.kv_bits % 8:
        raise UnsupportedError(
            f"scheme {scheme.name}: head_dim {arch.head_dim} at {scheme.kv_bits} bits does not fill whole bytes; use "
            "4 or 8 bits for KV"
        )
    kept = keep.resolve(arch, settings.keep)
    clips: dict[str, float] = {}
    if settings.a_clip == "auto" and scheme.a_bits != FULL and found is not None:
        for number, stem in enumerate(store.file_stems(arch)):
            stats = found.stats(stem, hessians=False)
            taps = [(tap.name, tap.linears) for tap in arch.taps()]
            for tap, linears in taps if stem != store.HEAD else [(arch.spec.head.name, (arch.spec.head,))]:
                clip = stats[tap].best_clip(scheme.a_bits, scheme.a_sym)
                names = [arch.full(number, one.name) if stem != store.HEAD else one.name for one in linears]
                clips.update({name: clip for name in names if name not in kept and clip != scheme.a_clip})
    return DfqConfig(scheme, online, kept, settings.fake, settings.sink_tokens, clips)


def _copy_rest(checkpoint: Checkpoint, config: DfqConfig, arch: BoundArch, folder: Path) -> None:
    """config.json and the tokenizer."""
    value = copy.deepcopy(checkpoint.config)
    value["quantization_config"] = config.to_dict()
    if arch.tied and arch.spec.head.name not in config.keep:
        value = untie_config(value)  # the head has its own integers now
    write_json(folder / "config.json", value)
    copy_tokenizer(checkpoint.path, folder)


def _evidence(layout: Layout, settings: QuantizeSettings, linears: dict[str, Any]) -> dict[str, Any]:
    return {
        "scheme": settings.scheme.name,
        "compensation": settings.compensation,
        "linears": linears,
        "fallbacks": {name: stats["fallback"] for name, stats in linears.items() if "fallback" in stats},
        "sizes": layout.sizes(),
    }


class _Work:
    """One quantization: dense tensors, blocks in order, the head."""

    def __init__(
        self,
        stage: Stage,
        checkpoint: Checkpoint,
        arch: BoundArch,
        config: DfqConfig,
        layout: Layout,
        settings: QuantizeSettings,
        calibration: store.Calibration | None,
    ) -> None:
        assert config.scheme is not None
        self.stage, self.checkpoint, self.arch, self.config, self.layout = stage, checkpoint, arch, config, layout
        self.scheme, self.options, self.calibration = config.scheme, settings.options(), calibration
        self.algorithm: Algorithm = algorithm(settings.algorithm)
        self.function = self.algorithm.load()
        self.integers = self.scheme.w_bits != FULL
        self.propagate = settings.propagate and self.algorithm.needs_hessian and self.integers
        self.compensate = settings.compensation if self.propagate else 0.0
        self.writer = SafetensorsWriter(stage.folder, layout.plan(), stored=arch.written)
        if self.propagate:
            from dfrot.runtime.block_runner import BlockRunner

            assert calibration is not None
            self.tokens = calibration.tokens()
            self.runner = BlockRunner(checkpoint, arch)

    def all(self, progress: Progress) -> dict[str, Any]:
        """Everything that is not done yet; returns the statistics by full linear name."""
        units = [*(store.block_stem(layer) for layer in range(self.arch.n_layers)), store.HEAD]
        if not self.stage.done("dense"):
            self.layout.copy_dense(self.checkpoint, self.writer)
            if self.propagate:
                for first in self.streams(0):
                    for begin in range(self.tokens.shape[0]):
                        first.write(begin, self.runner.embed(self.tokens[begin : begin + 1]))
                    first.sync()
            self.writer.sync()
            self.stage.mark("dense")
        linears: dict[str, Any] = {}
        for number, unit in enumerate(units):
            progress(KIND, number, len(units))
            if not self.stage.done(unit):
                results = self.head(number) if unit == store.HEAD else self.block(number)
                for name, result in results.items():
                    self.layout.write(self.writer, name, result)
                self.writer.sync()
                self.stage.mark(unit, {name: result.stats for name, result in results.items()})
                if self.propagate:
                    for stream in self.streams(number):
                        stream.remove()
            linears.update(self.stage.recall(unit))
        progress(KIND, len(units), len(units))
        return linears

    def streams(self, layer: int) -> list[HiddenStates]:
        """The hidden states before a block: of the quantized model and, to compensate, of the original."""
        shape = (*self.tokens.shape, self.arch.hidden)
        names = ["", "exact-"] if self.compensate else [""]
        return [HiddenStates(self.stage.folder, layer, shape, name) for name in names]

    def together(self, weights: Sequence[Tensor], hessian: Tensor | None, few: str | None = None) -> list[Quantized]:
        """few: why these weights are rounded although the algorithm would do better."""
        if few is not None:
            return rtn.fallback(weights, self.scheme, self.options, few)
        return self.function(weights, hessian, self.scheme, self.options)

    def block(self, layer: int) -> dict[str, Quantized]:
        if not self.integers:
            return {}
        if self.propagate:
            from dfrot.stages.quantize.compensate import Exact
            from dfrot.stages.quantize.propagate import quantize_block

            (source, *before), (target, *after) = self.streams(layer), self.streams(layer + 1)
            exact = Exact(before[0], after[0], self.compensate) if self.compensate else None
            return quantize_block(self.runner, layer, self.config, self.together, source, target, exact)
        stats = self.stats(store.block_stem(layer))
        results: dict[str, Quantized] = {}
        for tap in self.arch.taps():
            names = [self.arch.full(layer, one.name) for one in tap.linears]
            found = stats.get(tap.name)
            few = starved(found.count, len(found.absmax)) if found is not None and tap.expert is not None else None
            names = [name for name in names if name not in self.config.keep]
            results.update(self.quantized(names, found.hessian if found is not None else None, few))
        return results

    def head(self, layer: int) -> dict[str, Quantized]:
        name = self.arch.spec.head.name
        if not self.integers or name in self.config.keep:
            return {}
        if self.propagate:
            from dfrot.stages.quantize.propagate import head_hessian

            return self.quantized([name], head_hessian(self.runner, self.config, self.streams(layer)[0]))
        found = self.stats(store.HEAD).get(name)
        return self.quantized([name], found.hessian if found is not None else None)

    def stats(self, stem: str) -> dict[str, CalibStats]:
        """Those of the calibration by tap, with Hessians, when the algorithm wants them."""
        if self.calibration is None or not self.algorithm.needs_hessian:
            return {}
        found = self.calibration.stats(stem)
        if any(one.hessian is None for one in found.values()):
            raise InputError(f"{self.calibration.path}: holds no Hessians; calibrate with them, or propagate errors")
        return found

    def quantized(self, names: list[str], hessian: Tensor | None, few: str | None = None) -> dict[str, Quantized]:
        """Linears of one tap straight from the checkpoint."""
        if not names:
            return {}
        weights = [self.checkpoint.read(f"{self.layout.stored(name)}.weight").float() for name in names]
        return dict(zip(names, self.together(weights, hessian, few)))
