"""Sequential quantization of a block: every Hessian is taken from what the quantized model will feed.

Blocks in order, taps in the order of computation. When a tap's Hessian is collected, all earlier weights are the
quantized ones already and activations and KV are rounded as they will be while serving, so that later columns,
taps and blocks make up for earlier errors.

When all samples fit into memory together, one forward pass does it all: the pass stops at each tap, the tap's
weights are quantized in place, and the pass goes on with them. Otherwise each tap costs a pass over the chunks
that is cut off as soon as the tap is reached; experts, which do not feed one another, share their passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Tap
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.observe import inner_linear, observe_taps, samples_per_chunk
from dfrot.calib.simulate import SimulatedKV, quantize_activations
from dfrot.quant.config import DfqConfig
from dfrot.quant.grid import Quantized
from dfrot.quant.rtn import starved
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.quantize.compensate import Exact, Fed, TapSums

TapQuantize = Callable[[Sequence[Tensor], Tensor | None, str | None], list[Quantized]]
"""Weights float32 [N_i, K] of one tap, their Hessian [K, K], or why there is none to use -> one result each."""

SUMS_BYTES = 4 << 30  # second moments of taps that share a pass


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
    exact: Exact | None = None,
) -> dict[str, Quantized]:
    """Quantize block `layer` on the hidden states `source`, write what it makes of them to `target`.

    exact: the unquantized model's run beside it, for compensation. Returns the results by full linear name."""
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
    step = samples_per_chunk(arch, seqlen)
    starts = range(0, samples, step)
    results: dict[str, Quantized] = {}

    def settle(tap: Tap, sums: TapSums) -> None:
        modules = [inner_linear(block, one.name) for one in tap.linears]
        weights = [module.weight.data for module in modules]
        few = starved(sums.hessian.count, weights[0].shape[1]) if tap.expert is not None else None
        hessian = None if few else sums.hessian.value()
        if exact is not None and hessian is not None:
            weights = sums.compensated(weights, hessian, exact.strength)
        for one, module, result in zip(tap.linears, modules, quantize(weights, hessian, few)):
            module.weight.data = result.dequantize()
            results[arch.full(layer, one.name)] = result

    if len(starts) == 1:
        inputs = exact.run(runner, layer, taps, 0, samples) if exact is not None else {}
        waiting = {tap.name: tap for tap in taps}

        def at_once(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            sums = TapSums()
            sums.add(Fed(x, rows), inputs.pop(tap.name, None), exact is not None)
            settle(waiting.pop(tap.name), sums)

        with observe_taps(block, taps, at_once):
            target.write(0, runner.run(block, source.read(0, samples), cache))
        for tap in waiting.values():
            settle(tap, TapSums())  # experts without tokens
    else:
        for group in _passes(runner.arch, taps):
            sums = {tap.name: TapSums() for tap in group}
            for begin in starts:
                known = exact.run(runner, layer, group, begin, begin + step) if exact is not None else {}
                for name, fed in _until(runner, block, group, source.read(begin, begin + step), cache).items():
                    sums[name].add(fed, known.get(name), exact is not None)
            for tap in group:
                settle(tap, sums.pop(tap.name))
        for begin in starts:
            if exact is not None and not taps:
                exact.run(runner, layer, [], begin, begin + step)  # a block that is kept whole
            target.write(begin, runner.run(block, source.read(begin, begin + step), cache))
    target.sync()
    if exact is not None:
        exact.target.sync()
    return results


def _passes(arch: BoundArch, taps: Sequence[Tap]) -> list[list[Tap]]:
    """Taps that share a pass, in the order of computation: one at a time, but all experts' inputs together, then all
    their inner ones, as far as SUMS_BYTES allow."""
    groups: list[list[Tap]] = []
    experts = [tap for tap in taps if tap.expert is not None]
    for tap in [tap for tap in taps if tap.expert is None]:
        groups.append([tap])
    for space in dict.fromkeys(tap.reads for tap in experts):
        size = 0
        for tap in (one for one in experts if one.reads == space):
            nbytes = 16 * arch.sizes[tap.linears[0].cols] ** 2
            if not size or size + nbytes > SUMS_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(tap)
            size += nbytes
    return groups


def _until(runner: BlockRunner, block: nn.Module, taps: Sequence[Tap], hidden: Tensor, cache: Any) -> dict[str, Fed]:
    """What taps are fed, from a run that goes no further than the last of them."""
    seen: dict[str, Fed] = {}

    def stop(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
        seen[tap.name] = Fed(x, rows)
        if len(seen) == len(taps):
            raise _Reached

    with observe_taps(block, taps, stop), suppress(_Reached):
        runner.run(block, hidden, cache)
    return seen


@torch.no_grad()
def head_hessian(runner: BlockRunner, config: DfqConfig, source: HiddenStates) -> Tensor:
    """The Hessian [hidden, hidden] of what the head reads, with its activation quantizer."""
    from dfrot.calib.observe import HessianSum
    from dfrot.quant.activations import fake_quantize

    assert config.scheme is not None
    scheme, total = config.scheme, HessianSum()
    clip = config.a_clips.get(runner.arch.spec.head.name, scheme.a_clip)
    step = samples_per_chunk(runner.arch, source.shape[1])
    for begin in range(0, source.shape[0], step):
        x = runner.normed(source.read(begin, begin + step))
        total.add(fake_quantize(x, scheme.a_bits, scheme.a_sym, clip).reshape(-1, x.shape[-1]))
    return total.value()
