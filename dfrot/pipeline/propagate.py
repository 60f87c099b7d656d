"""Sequential quantization of a block: every Hessian is taken from what the quantized model will feed.

Blocks in order, taps in the order of computation. When a tap's Hessian is collected, all earlier weights are the
quantized ones already and activations and KV are rounded as they will be while serving, so that later columns,
taps and blocks make up for earlier errors.

When all samples fit into memory together, one forward pass does it all: the pass stops at each tap, the tap's
weights are quantized in place, and the pass goes on with them. Otherwise each tap costs a pass over the chunks
that is cut off as soon as the tap is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import Tap
from dfrot.calib.hidden import HiddenStates
from dfrot.calib.observe import HessianSum, chunk_samples, linear_of, watching
from dfrot.calib.simulate import SimulatedKV, quantize_activations
from dfrot.hf.blocks import BlockRunner
from dfrot.quant.config import DfqConfig
from dfrot.quant.grid import Quantized

TapQuantize = Callable[[Sequence[Tensor], Tensor], list[Quantized]]
"""Weights float32 [N_i, K] of one tap and their Hessian [K, K] -> one result each."""


class _Reached(Exception):
    """A pass has shown what it was run for."""


def quantized_taps(runner: BlockRunner, config: DfqConfig, layer: int) -> list[Tap]:
    """The taps of a block, reduced to the linears that are quantized."""
    taps = []
    for tap in runner.arch.taps():
        linears = tuple(one for one in tap.linears if runner.arch.full(layer, one.name) not in config.keep)
        if linears:
            taps.append(replace(tap, linears=linears))
    return taps


@torch.no_grad()
def quantize_block(
    runner: BlockRunner,
    layer: int,
    config: DfqConfig,
    quantize: TapQuantize,
    source: HiddenStates,
    target: HiddenStates,
) -> dict[str, Quantized]:
    """Quantize block `layer` on the hidden states `source`, write what it makes of them to `target`.

    Returns the results by full linear name."""
    assert config.scheme is not None
    arch, scheme = runner.arch, config.scheme
    block = runner.block(layer)
    for parameter in block.parameters():
        parameter.data = parameter.data.clone()  # aligned, so that BLAS repeats itself after a resume
    taps = quantized_taps(runner, config, layer)
    for tap in taps:
        names = [one.name for one in tap.linears]
        clip = config.a_clips.get(arch.full(layer, names[0]), scheme.a_clip)
        quantize_activations(block, tap, names, scheme, clip, config.sink_tokens)
    cache = SimulatedKV.of(scheme, config.online.r3, config.sink_tokens)
    samples, seqlen, _ = source.shape
    step = chunk_samples(arch, seqlen)
    starts = range(0, samples, step)
    results: dict[str, Quantized] = {}

    def settle(tap: Tap, hessian: Tensor) -> None:
        modules = [linear_of(block, one.name) for one in tap.linears]
        found = quantize([module.weight.data for module in modules], hessian)
        for one, module, result in zip(tap.linears, modules, found):
            module.weight.data = result.dequantize()
            results[arch.full(layer, one.name)] = result

    def at_once(tap: Tap, x: Tensor) -> None:
        total = HessianSum()
        total.add(x.reshape(-1, x.shape[-1]))
        settle(tap, total.value())

    if len(starts) == 1:
        with watching(block, taps, at_once):
            target.write(0, runner.run(block, source.read(0, samples), cache))
    else:
        for tap in taps:
            settle(tap, _collect(runner, block, tap, source, starts, cache))
        for begin in starts:
            target.write(begin, runner.run(block, source.read(begin, begin + step), cache))
    target.sync()
    return results


def _collect(
    runner: BlockRunner, block: nn.Module, tap: Tap, source: HiddenStates, starts: range, cache: Any
) -> Tensor:
    """The Hessian of one tap over all chunks, each run no further than this tap."""
    total = HessianSum()

    def stop(tap: Tap, x: Tensor) -> None:
        total.add(x.reshape(-1, x.shape[-1]))
        raise _Reached

    with watching(block, [tap], stop):
        for begin in starts:
            try:
                runner.run(block, source.read(begin, begin + starts.step), cache)
            except _Reached:
                continue
    return total.value()


@torch.no_grad()
def head_hessian(runner: BlockRunner, config: DfqConfig, source: HiddenStates) -> Tensor:
    """The Hessian [hidden, hidden] of what the head reads, with its activation quantizer."""
    from dfrot.quant.activations import fake_quantize

    assert config.scheme is not None
    scheme, total = config.scheme, HessianSum()
    clip = config.a_clips.get(runner.arch.spec.head.name, scheme.a_clip)
    step = chunk_samples(runner.arch, source.shape[1])
    for begin in range(0, source.shape[0], step):
        x = runner.normed(source.read(begin, begin + step))
        total.add(fake_quantize(x, scheme.a_bits, scheme.a_sym, clip).reshape(-1, x.shape[-1]))
    return total.value()
