"""Sequential quantization of a block: every Hessian is taken from the activations that the quantized model produces.

Blocks in order, taps in the order of computation. When a tap's Hessian is collected, all earlier weights are the
quantized ones already and activations and KV are rounded as they will be while serving, so that later columns,
taps and blocks make up for earlier errors.

One pass per chunk of samples does it all: it waits at each tap until all chunks are there, the tap's weights are
quantized in place, and the passes go on with them. Where what waits would not fit into memory, and for experts, which
not every chunk reaches, each tap costs a pass over the chunks that is cut off as soon as the tap is reached; experts,
which do not feed one another, share their passes. Both ways end in the same bytes.

Ranks share the chunks. Every tap belongs to one of them, which gets the products of all chunks, adds them up in the
order of the chunks and factors the Hessian. All then share the rows of the tap's weights; experts' inputs, which are
many, have different owners that round alone. Everybody puts the results into their copy of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Tap
from dfrot.arch.space import Space
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.paused_run import PausedRun
from dfrot.calib.simulate import SimulatedKV, SimulatedProduct, quantize_activations
from dfrot.calib.taps import inner_linear, observe_taps, samples_per_chunk
from dfrot.quant.activations import fake_quantize
from dfrot.quant.config import DfqConfig
from dfrot.quant.fp4 import round_groups
from dfrot.quant.rounding.grid import Quantized
from dfrot.quant.rounding.rtn import starved
from dfrot.quant.rounding.travel import from_plain, to_plain
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.block_runner import BlockRunner, OnlineHadamard
from dfrot.stages.quantize.compensate import ExactRun, SharedMoments, TapInput, TapInputs, TapMoments, moment_bytes
from dfrot.stages.quantize.waiting import passes_wait
from dfrot_kernels.memory import release_memory, share_heap

TapQuantize = Callable[[Sequence[Tensor], Tensor | None, str | None, Ranks, int], list[Quantized]]
"""Weights float32 [N_i, K] of one tap, their Hessian [K, K], or why there is none to use, ranks that share the rows and
the one that has these values -> one result each."""

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
    ranks: Ranks = SINGLE,
    *,
    memory: float,
) -> dict[str, Quantized]:
    """Quantize block `layer` on the hidden states `source`, and write its quantized outputs to `target`.

    exact: the unquantized model's run beside it, for compensation. key_shift: of the block's cache, float32 [kv heads,
    head_dim]. ranks: share the work. memory: GB that activations of passes which wait at a tap may take. Returns the
    results by full linear name."""
    samples, seqlen, _ = source.shape
    step = samples_per_chunk(runner.arch, seqlen)
    block = _BlockQuantization(runner, layer, config, quantize, exact, key_shift, ranks)
    if ranks.first:
        for states in (target,) if exact is None else (target, exact.target):
            states.prepare()
    ranks.barrier()
    own_samples = min(samples, len(range(0, samples, ranks.size * step)) * step)
    if samples <= step and ranks.size == 1:
        block.in_one_pass(source, target)
    elif passes_wait(runner.arch, own_samples * seqlen, memory):
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
        ranks: Ranks,
    ) -> None:
        assert config.scheme is not None
        self.ranks = ranks
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
        owners = ranks.owners([_cost(self.arch, tap) for tap in self.taps])
        self.owners = {tap.name: owner for tap, owner in zip(self.taps, owners)}
        self.cache = SimulatedKV.of(config.scheme, config.online.r3, config.sink_tokens, key_shift)
        self.results: dict[str, Quantized] = {}
        self.exact_block: nn.Module | None = None  # where it is kept from pass to pass

    def in_one_pass(self, source: HiddenStates, target: HiddenStates) -> None:
        """All samples together: each tap is quantized when the pass reaches it."""
        samples = source.shape[0]
        (exact_inputs,) = self._run_exact(self.taps, [slice(0, samples)])
        waiting = {tap.name: tap for tap in self.taps}
        passed: list[Tap] = []

        def quantize_reached(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            if self.arch.spec.experts is None:
                self._let_go(passed)
                passed.append(tap)
            moments = self._moments([waiting.pop(tap.name)])
            moments.add(tap.name, TapInput(x, rows), exact_inputs.pop(tap.name, None))
            self._quantize_taps([tap], moments)

        with observe_taps(self.block, self.taps, quantize_reached):
            target.write(0, self.runner.run(self.block, source.read(0, samples), self.cache))
        for tap in waiting.values():
            self._quantize_taps([tap], self._moments([tap]))  # experts without tokens

    def in_lockstep(self, source: HiddenStates, target: HiddenStates, step: int) -> None:
        """`step` samples at a time: every chunk's pass waits at each tap until that is quantized."""
        rounds = self._rounds(source, step)
        own = [chunk for chunk in rounds if chunk is not None]
        exact_inputs = self._run_exact(self.taps, own)

        def wait(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
            run.pause((tap.name, TapInput(x, rows)))  # the one that takes its step

        def pass_over(chunk: slice) -> Callable[[], None]:
            return lambda: target.write(
                chunk.start, self.runner.run(self.block, source.read(chunk.start, chunk.stop), self.cache)
            )

        share_heap()
        with ExitStack() as stack:
            runs = [stack.enter_context(PausedRun(pass_over(chunk))) for chunk in own]
            stack.enter_context(observe_taps(self.block, self.taps, wait))
            passed: list[Tap] = []
            for tap in self.taps:
                reached = []
                for run in runs:
                    reached.append(_reached(run, tap))
                    if tap.reads == Space.MLP:
                        release_memory()  # what stays of a chunk settles in the holes that its MLP leaves
                self._let_go(passed)
                passed.append(tap)
                moments = self._moments([tap])
                for number in range(len(rounds)):
                    if number < len(runs):
                        moments.add(tap.name, reached.pop(0), exact_inputs[number].pop(tap.name, None))
                    moments.end_round()
                self._quantize_taps([tap], moments)
                release_memory()  # what waits next has another size than the holes that are left
            for run in runs:
                run.step()  # to its end

    def in_chunks(self, source: HiddenStates, target: HiddenStates, step: int) -> None:
        """`step` samples at a time: one pass over all chunks per group of taps, then one for the outputs."""
        rounds = self._rounds(source, step)
        if self.exact is not None and any(chunk is not None for chunk in rounds):
            self.exact_block = self.exact.block(self.runner, self.layer)  # not read again for every group and chunk
        for group in _groups_of_taps(self.arch, self.taps):
            moments = self._moments(group)
            for chunk in rounds:
                if chunk is not None:
                    (exact_inputs,) = self._run_exact(group, [chunk])
                    for name, tap_input in self._run_until(group, source.read(chunk.start, chunk.stop)).items():
                        moments.add(name, tap_input, exact_inputs.get(name))
                moments.end_round()
            self._quantize_taps(group, moments)
        for chunk in rounds:
            if chunk is None:
                continue
            if not self.taps:  # nothing here is quantized: no pass above ran the unquantized block
                self._run_exact([], [chunk])
            hidden = source.read(chunk.start, chunk.stop)
            target.write(chunk.start, self.runner.run(self.block, hidden, self.cache))

    def _rounds(self, source: HiddenStates, step: int) -> list[slice | None]:
        """This rank's chunk of samples in every round."""
        starts = range(0, source.shape[0], step)
        numbers = self.ranks.rounds(len(starts))
        return [None if number is None else slice(starts[number], starts[number] + step) for number in numbers]

    def _moments(self, taps: Sequence[Tap]) -> SharedMoments:
        owners = {tap.name: self.owners[tap.name] for tap in taps}
        return SharedMoments(self.ranks, owners, {tap.name: self._weights(tap) for tap in taps})

    def _run_exact(self, taps: Sequence[Tap], chunks: Sequence[slice]) -> list[TapInputs]:
        """Inputs of `taps` in the unquantized model, per chunk of samples; empty without compensation."""
        if self.exact is None:
            return [{} for _ in chunks]
        block = self.exact_block or self.exact.block(self.runner, self.layer)
        return self.exact.run(self.runner, block, taps, chunks)

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

    def _quantize_taps(self, taps: Sequence[Tap], moments: SharedMoments) -> None:
        """Quantize the linears of taps, and put the quantized weights into the block."""
        release_memory()  # holes that activations have left: matrices of K columns do not fit into them
        if len(taps) == 1 and taps[0].expert is None:
            self._put(taps[0], self._quantized_together(taps[0], moments))
            return
        own = {}
        for tap in taps:
            if (found := moments.take(tap.name)) is not None:
                own[tap.name] = [to_plain(result) for result in self._quantized(tap, found)]
        everything = {name: plain for part in self.ranks.gather_everywhere(own) for name, plain in part.items()}
        for tap in taps:
            self._put(tap, [from_plain(plain) for plain in everything.pop(tap.name)])

    def _put(self, tap: Tap, results: Sequence[Quantized]) -> None:
        """Put quantized weights into the block."""
        for linear, result in zip(tap.linears, results):
            module = inner_linear(self.block, linear.name)
            module.weight.data = result.dequantize()
            if isinstance(module.forward, SimulatedProduct):
                module.forward.pack(result.packed())
            self.results[self.arch.full(self.layer, linear.name)] = result

    def _let_go(self, passed: list[Tap]) -> None:
        """Give back the memory of the weights of taps that all passes are behind, and forget these taps. Their results
        stay."""
        while passed:
            for linear in passed.pop().linears:
                module = inner_linear(self.block, linear.name)
                module.weight.data = torch.empty(0)
                if isinstance(module.forward, SimulatedProduct):
                    module.forward.packed = None

    def _quantized_together(self, tap: Tap, moments: SharedMoments) -> list[Quantized]:
        """The results for the linears of a tap that no expert has: the rank that has its moments prepares the work, all
        share its rows."""
        weights, hessian = self._prepared(self._weights(tap), moments.take(tap.name))
        for linear in tap.linears:  # nothing multiplies by them before the results are put there
            inner_linear(self.block, linear.name).weight.data = torch.empty(0)
        return self.quantize(weights, hessian, None, self.ranks, self.owners[tap.name])

    def _quantized(self, tap: Tap, moments: TapMoments) -> list[Quantized]:
        """The results for the linears of a tap, by this rank alone."""
        weights = self._weights(tap)
        reason = starved(moments.hessian.count, weights[0].shape[1]) if tap.expert is not None else None
        if reason:
            return self.quantize(weights, None, reason, SINGLE, 0)
        weights, hessian = self._prepared(weights, moments)
        return self.quantize(weights, hessian, None, SINGLE, 0)

    def _weights(self, tap: Tap) -> list[Tensor]:
        return [inner_linear(self.block, linear.name).weight.data for linear in tap.linears]

    def _prepared(self, weights: list[Tensor], moments: TapMoments | None) -> tuple[list[Tensor], Tensor | None]:
        """The weights that are rounded in place of these, and their Hessian; as they are, without one, on ranks that do
        not have the moments. These are used up."""
        if moments is None:
            return weights, None
        hessian = moments.hessian.take()
        release_memory()  # of the sum's parts
        if self.exact is not None:
            weights = moments.compensated(weights, hessian, self.exact.strength)
        return weights, hessian


def _reached(run: PausedRun, tap: Tap) -> TapInput:
    """The input of `tap`, which is the next one that a pass waits at."""
    name, tap_input = cast("tuple[str, TapInput]", run.step())
    assert name == tap.name, f"{name} is computed before {tap.name}"
    return tap_input


def _cost(arch: BoundArch, tap: Tap) -> float:
    """What quantizing a tap's weights costs: K^2 (N + K)."""
    width = arch.sizes[tap.linears[0].cols]
    return float(width) ** 2 * (width + sum(arch.sizes[linear.rows] for linear in tap.linears))


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
            rows = sum(arch.sizes[linear.rows] for linear in tap.linears)
            nbytes = moment_bytes(rows, arch.sizes[tap.linears[0].cols])
            if not size or size + nbytes > MOMENT_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(tap)
            size += nbytes
    return groups


@torch.no_grad()
def head_hessian(runner: BlockRunner, config: DfqConfig, source: HiddenStates, ranks: Ranks = SINGLE) -> Tensor | None:
    """The Hessian float32 [hidden, hidden] of the head's input behind its activation quantizer, if it has one; on the
    first rank only.

    source: the hidden states behind the last block."""
    assert config.scheme is not None
    name = runner.arch.spec.head.name
    scheme, shared = config.activations_of(name), config.a_scales.get(name)
    bits = FULL if config.head.quantized else scheme.a_bits
    step = samples_per_chunk(runner.arch, source.shape[1])
    starts = range(0, source.shape[0], step)
    moments = SharedMoments(ranks, {name: 0}, {}, runner.arch.hidden)
    for number in ranks.rounds(len(starts)):
        if number is not None:
            x = runner.normed(source.read(starts[number], starts[number] + step))
            if scheme.number_format != INTEGERS and bits != FULL:
                x = round_groups(x, scheme.number_format, shared)
            else:
                x = fake_quantize(x, bits, scheme.a_sym, scheme.a_clip)
            moments.add(name, TapInput(x, None), None)
        moments.end_round()
    found = moments.take(name)
    return None if found is None else found.hessian.take()
