"""Sequential quantization of a block: every Hessian is taken from the activations that the quantized model produces.

Blocks in order, taps in the order of computation. When a tap's Hessian is collected, all earlier weights are the
quantized ones already and activations and KV are rounded as they will be while serving, so that later columns,
taps and blocks make up for earlier errors.

One pass per chunk of samples does it all: it waits at each tap until all chunks are there, the tap's weights are
quantized in place, and the passes go on with them. Where what waits would not fit into memory, and for experts, which
not every chunk reaches, each tap costs a pass over the chunks that is cut off as soon as the tap is reached; experts,
which do not feed one another, share their passes. Both ways end in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Tap
from dfrot.arch.space import Space
from dfrot.calib.hessian import HessianSum
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.paused_run import PausedRun
from dfrot.calib.simulate import SimulatedKV, SimulatedProduct, quantize_activations
from dfrot.calib.taps import inner_linear, observe_taps, samples_per_chunk
from dfrot.quant.activations import fake_quantize
from dfrot.quant.config import DfqConfig
from dfrot.quant.fp4 import round_groups
from dfrot.quant.grid import Quantized
from dfrot.quant.rtn import starved
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.runtime.block_runner import BlockRunner, OnlineHadamard
from dfrot.stages.quantize.compensate import ExactRun, TapInput, TapInputs, TapMoments
from dfrot_kernels.memory import release_memory, share_heap

TapQuantize = Callable[[Sequence[Tensor], Tensor | None, str | None], list[Quantized]]
"""Weights float32 [N_i, K] of one tap, their Hessian [K, K], or why there is none to use -> one result each."""

WAITING_BYTES = 2 << 30  # activations of the passes that wait at a tap
MOMENT_BYTES = 4 << 30  # second moments of taps that share a pass


class _TapsReached(Exception):
    """Raised inside a pass that need not go on: all of its taps were observed."""


def quantized_taps(arch: BoundArch, config: DfqConfig, layer: int) -> list[Tap]:
    """The taps of a block, reduced to the linears that are quantized."""
    taps = []
    for tap in arch.taps():
        linears = tuple(linear for linear in tap.linears if arch.full(layer, linear.name) not in config.keep)
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
    exact: ExactRun | None = None,
    key_shift: Tensor | None = None,
) -> dict[str, Quantized]:
    """Quantize block `layer` on the hidden states `source`, and write its quantized outputs to `target`.

    exact: the unquantized model's run beside it, for compensation. key_shift: of the block's cache, float32 [kv heads,
    head_dim]. Returns the results by full linear name."""
    samples, seqlen, _ = source.shape
    step = samples_per_chunk(runner.arch, seqlen)
    block = _BlockQuantization(runner, layer, config, quantize, exact, key_shift)
    if samples <= step:
        block.in_one_pass(source, target)
    elif runner.arch.spec.experts is None and waiting_bytes(runner.arch, samples * seqlen) <= WAITING_BYTES:
        block.in_lockstep(source, target, step)
    else:
        block.in_chunks(source, target, step)
    target.sync()
    if exact is not None:
        exact.target.sync()
    return block.results


class _BlockQuantization:
    """One block, whose weights are replaced by their quantized values tap by tap."""

    def __init__(
        self,
        runner: BlockRunner,
        layer: int,
        config: DfqConfig,
        quantize: TapQuantize,
        exact: ExactRun | None,
        key_shift: Tensor | None,
    ) -> None:
        assert config.scheme is not None
        self.runner, self.layer, self.quantize, self.exact = runner, layer, quantize, exact
        self.arch = runner.arch
        self.block = runner.block(layer)
        for parameter in self.block.parameters():
            parameter.data = parameter.data.clone()  # aligned, so that BLAS repeats itself after a resume
        for module in self.block.modules():
            if isinstance(module, OnlineHadamard):
                module.overwrites = True
        self.taps = quantized_taps(self.arch, config, layer)
        for tap in self.taps:
            names = [linear.name for linear in tap.linears]
            first = self.arch.full(layer, names[0])
            scheme, shared = config.activations_of(first), config.a_scales.get(first)
            quantize_activations(self.block, tap, names, scheme, config.sink_tokens, True, shared)
        self.cache = SimulatedKV.of(config.scheme, config.online.r3, config.sink_tokens, key_shift)
        self.results: dict[str, Quantized] = {}

    def in_one_pass(self, source: HiddenStates, target: HiddenStates) -> None:
        """All samples together: each tap is quantized when the pass reaches it."""
        samples = source.shape[0]
        (exact_inputs,) = self._run_exact(self.taps, [slice(0, samples)])
        waiting = {tap.name: tap for tap in self.taps}

        def quantize_reached(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            moments = TapMoments()
            moments.add(TapInput(x, rows), exact_inputs.pop(tap.name, None))
            self._quantize_tap(waiting.pop(tap.name), moments)

        with observe_taps(self.block, self.taps, quantize_reached):
            target.write(0, self.runner.run(self.block, source.read(0, samples), self.cache))
        for tap in waiting.values():
            self._quantize_tap(tap, TapMoments())  # experts without tokens

    def in_lockstep(self, source: HiddenStates, target: HiddenStates, step: int) -> None:
        """`step` samples at a time: every chunk's pass waits at each tap until that is quantized."""
        starts = range(0, source.shape[0], step)
        exact_inputs = self._run_exact(self.taps, [slice(begin, begin + step) for begin in starts])

        def wait(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            run.pause((tap, TapInput(x, rows)))  # the one that takes its step

        def pass_over(begin: int) -> Callable[[], None]:
            return lambda: target.write(
                begin, self.runner.run(self.block, source.read(begin, begin + step), self.cache)
            )

        share_heap()
        with ExitStack() as stack:
            runs = [stack.enter_context(PausedRun(pass_over(begin))) for begin in starts]
            stack.enter_context(observe_taps(self.block, self.taps, wait))
            while True:
                moments = TapMoments()
                reached: tuple[Tap, TapInput] | None = None
                for run, exact in zip(runs, exact_inputs):
                    reached = run.step()
                    if reached is not None:
                        moments.add(reached[1], exact.pop(reached[0].name, None))
                    if reached is not None and reached[0].reads == Space.MLP:
                        release_memory()  # what stays of a chunk settles in the holes that its MLP leaves
                if reached is None:  # all passes are at their end: they reach the same taps
                    return
                self._quantize_tap(reached[0], moments)
                release_memory()  # what waits next has another size than the holes that are left

    def in_chunks(self, source: HiddenStates, target: HiddenStates, step: int) -> None:
        """`step` samples at a time: one pass over all chunks per group of taps, then one for the outputs."""
        starts = range(0, source.shape[0], step)
        for group in _groups_of_taps(self.arch, self.taps):
            moments = {tap.name: TapMoments() for tap in group}
            for begin in starts:
                (exact_inputs,) = self._run_exact(group, [slice(begin, begin + step)])
                for name, tap_input in self._run_until(group, source.read(begin, begin + step)).items():
                    moments[name].add(tap_input, exact_inputs.get(name))
            for tap in group:
                self._quantize_tap(tap, moments.pop(tap.name))
        for begin in starts:
            if not self.taps:  # nothing here is quantized: no pass above ran the unquantized block
                self._run_exact([], [slice(begin, begin + step)])
            target.write(begin, self.runner.run(self.block, source.read(begin, begin + step), self.cache))

    def _run_exact(self, taps: Sequence[Tap], chunks: Sequence[slice]) -> list[TapInputs]:
        """Inputs of `taps` in the unquantized model, per chunk of samples; empty without compensation."""
        return self.exact.run(self.runner, self.layer, taps, chunks) if self.exact is not None else [{} for _ in chunks]

    def _run_until(self, taps: Sequence[Tap], hidden: Tensor) -> TapInputs:
        """Inputs of `taps` by tap name, from a run on hidden [B, S, d] that goes no further than the last of them."""
        inputs: TapInputs = {}

        def stop(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            inputs[tap.name] = TapInput(x, rows)
            if len(inputs) == len(taps):
                raise _TapsReached

        with observe_taps(self.block, taps, stop), suppress(_TapsReached):
            self.runner.run(self.block, hidden, self.cache)
        return inputs

    def _quantize_tap(self, tap: Tap, moments: TapMoments) -> None:
        """Quantize the linears of a tap and put the quantized weights into the block."""
        modules = [inner_linear(self.block, linear.name) for linear in tap.linears]
        weights = [module.weight.data for module in modules]
        reason = starved(moments.hessian.count, weights[0].shape[1]) if tap.expert is not None else None
        hessian = None if reason else moments.hessian.value()
        if self.exact is not None and hessian is not None:
            weights = moments.compensated(weights, hessian, self.exact.strength)
        for linear, module, result in zip(tap.linears, modules, self.quantize(weights, hessian, reason)):
            module.weight.data = result.dequantize()
            if isinstance(module.forward, SimulatedProduct):
                module.forward.pack(result.packed())
            self.results[self.arch.full(self.layer, linear.name)] = result


def waiting_bytes(arch: BoundArch, tokens: int) -> int:
    """Activations that wait at a tap, decided by shapes only: of the quantized model at most the residual stream, the
    input and what attention or MLP hold, of the unquantized one the inputs of all taps; float32."""
    sizes = arch.sizes
    quantized = 3 * sizes["hidden"] + max(sizes["q"] + 2 * sizes["kv"], 2 * sizes["intermediate"])
    return 4 * tokens * (quantized + sum(sizes[tap.linears[0].cols] for tap in arch.taps()))


def _groups_of_taps(arch: BoundArch, taps: Sequence[Tap]) -> list[list[Tap]]:
    """Taps that share a pass, in the order of computation: one at a time, but all experts' inputs together, then all
    their inner ones, as far as MOMENT_BYTES allow."""
    groups: list[list[Tap]] = []
    experts = [tap for tap in taps if tap.expert is not None]
    for tap in [tap for tap in taps if tap.expert is None]:
        groups.append([tap])
    for space in dict.fromkeys(tap.reads for tap in experts):
        size = 0
        for tap in (tap for tap in experts if tap.reads == space):
            nbytes = 16 * arch.sizes[tap.linears[0].cols] ** 2  # Hessian and cross moment, float64
            if not size or size + nbytes > MOMENT_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(tap)
            size += nbytes
    return groups


@torch.no_grad()
def head_hessian(runner: BlockRunner, config: DfqConfig, source: HiddenStates) -> Tensor:
    """The Hessian float32 [hidden, hidden] of the head's input behind its activation quantizer, if it has one.

    source: the hidden states behind the last block."""
    assert config.scheme is not None
    name = runner.arch.spec.head.name
    scheme, total, shared = config.activations_of(name), HessianSum(), config.a_scales.get(name)
    bits = FULL if config.head.quantized else scheme.a_bits
    step = samples_per_chunk(runner.arch, source.shape[1])
    for begin in range(0, source.shape[0], step):
        x = runner.normed(source.read(begin, begin + step))
        if scheme.number_format != INTEGERS and bits != FULL:
            x = round_groups(x, scheme.number_format, shared)
        else:
            x = fake_quantize(x, bits, scheme.a_sym, scheme.a_clip)
        total.add(x.reshape(-1, x.shape[-1]))
    return total.value()
