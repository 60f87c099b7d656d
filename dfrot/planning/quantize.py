"""The cost of `dfq quantize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dfrot.arch import BoundArch, Tap
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.key_means import TOKENS as KEY_TOKENS
from dfrot.calib.taps import samples_per_chunk
from dfrot.checkpoint import Checkpoint
from dfrot.planning.blocks import BlockShapes
from dfrot.planning.calibrate import TRIANGLE
from dfrot.planning.work import FACTOR, StageCost
from dfrot.processor import fast_bfloat16
from dfrot.quant import algorithm
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import refuses_key_shift
from dfrot.quant.rounding.gptq import fits_scales, searched_group
from dfrot.quant.rounding.grid import RATIOS
from dfrot.quant.rounding.quantized_rows import row_slices
from dfrot.quant.rounding.row_panels import panel_bytes, panel_values
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.runtime.transformers_model import TOKENS
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.compensate import error_size, moment_bytes
from dfrot.stages.quantize.layout import CheckpointLayout
from dfrot.stages.quantize.plan import result_config
from dfrot.stages.quantize.propagate import quantized_taps
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.quantize.waiting import LEAST, passes_wait, waiting_bytes

KERNEL_BITS = 8  # activations of so many bits are multiplied as integers
PROPOSAL = 0.2  # of what a column costs GPTQ that its group's scale costs to try, measured on 768 rows of 4096 columns
ROUNDED = 40.0  # times that rounding an input, or a key or value, touches each of its values


def quantize_cost(
    checkpoint: Checkpoint,
    arch: BoundArch,
    settings: QuantizeSettings,
    calibration: CalibrateSettings,
    rotated: bool,
) -> StageCost:
    """What `quantize` costs with these settings on tokens of this calibration. rotated: by dfq, which is not compared
    with transformers again. Raises UnsupportedError for a scheme that does not fit the architecture."""
    cost = StageCost("quantize")
    shapes = BlockShapes(arch, next(iter(checkpoint.entries.values())).dtype.itemsize)
    config = result_config(arch, None, settings, None)
    rounds, hessians = settings.scheme.w_bits != FULL, algorithm(settings.algorithm).needs_hessian
    propagates = settings.propagate and hessians and rounds
    shifts = settings.scheme.kv_bits != FULL and settings.key_shift != "none" and refuses_key_shift(arch) is None
    shifts = shifts and (propagates or settings.needs_calibration())
    config = replace(config, key_shift="mean" if shifts else config.key_shift)
    cost.disk = CheckpointLayout(checkpoint, arch, config).nbytes
    cost.add(write=cost.disk, start=1)
    if not rotated:
        shapes.run_blocks(cost, 2 * TOKENS, TOKENS, loads=2)
        shapes.run_head(cost, 2 * TOKENS)
    tokens = calibration.samples * calibration.seqlen
    if shifts:
        shapes.run_blocks(cost, min(KEY_TOKENS, tokens), calibration.seqlen)
    cost.parts["blocks"] = shapes.block_memory()
    if propagates:
        _propagation(cost, shapes, config, settings, calibration)
    elif rounds:
        shapes.load_all(cost)
    taps = quantized_taps(arch, config, 0) if rounds else []
    if propagates and not arch.n_experts:
        for tap in taps:
            _factor(cost, shapes, tap, settings)
            with _shared_rows(cost, shapes, tap):
                _rounding(cost, shapes, tap, settings, hessians)
    else:
        with cost.shared(arch.n_experts if propagates else arch.n_layers):  # an input, or a whole block, has one rank
            for tap in taps:
                if hessians:
                    _factor(cost, shapes, tap, settings)
                _rounding(cost, shapes, tap, settings, hessians)
    copied = shapes.embed * (1 if arch.tied else 2)
    cost.add(read=copied * shapes.source_itemsize)
    if settings.tuned:
        cost.notes.append("tuning (effort high) is not counted")
    if settings.budget is not None:
        cost.notes.append("the measurement of a budget is not counted")
    return cost


def _propagation(
    cost: StageCost, shapes: BlockShapes, config: DfqConfig, settings: QuantizeSettings, calibration: CalibrateSettings
) -> None:
    """The passes of the quantized model and of the 16-bit one beside it, and the second moments of their inputs."""
    arch, layers = shapes.arch, shapes.arch.n_layers
    samples, seqlen = calibration.samples, calibration.seqlen
    tokens = samples * seqlen
    chunk = min(samples, samples_per_chunk(arch, seqlen))
    chunks = -(-samples // chunk)
    taps = quantized_taps(arch, config, 0)
    single = chunks == 1 and arch.spec.experts is None
    together = single or passes_wait(arch, tokens, settings.memory or LEAST)  # as quantize_block decides
    separate = {tap.name if tap.expert is None else str(tap.reads) for tap in taps}  # experts share their passes
    groups = 1 if together else len(separate)
    exact = groups if settings.compensation else 0
    half = "products16" if fast_bfloat16() and shapes.source_itemsize == 2 else "products32"
    flops = shapes.product_flops(arch.taps())
    attention = shapes.attention_flops(seqlen)
    sizes = {tap: _error_size(shapes, tap) if exact else 0 for tap in taps}
    collected = layers * 4.0 * sum(TRIANGLE * shapes.width(tap) ** 2 + sizes[tap] for tap in taps)  # float32
    sent = layers * float(sum(shapes.tap_weights(tap) for tap in taps if tap.expert is not None))  # a byte each
    with cost.shared(chunks, collected=collected, sent=sent, exchanges=2.0 * layers * len(separate)):
        cost.work[half] += exact * layers * tokens * flops  # type: ignore[assignment]
        cost.add(attention=exact * layers * tokens * attention, elements=exact * layers * tokens * shapes.values)
        _simulated(cost, shapes, taps, settings, tokens, seqlen, together)
        for tap in taps:
            width, share = shapes.width(tap), shapes.share(tap.expert)
            products = 2 * TRIANGLE * width**2 + 2.0 * sizes[tap] * (2 if sizes[tap] < width**2 else 1)
            cost.add(products32=layers * tokens * share * products)
            cost.add(elements=layers * chunks * (TRIANGLE * width**2 + sizes[tap]))
            cost.add(elements=layers * tokens * share * width * (3.0 if exact else 0.0))
    shapes.load_all(cost, 2.0 if exact else 1.0)
    hidden = HiddenStates.nbytes((samples, seqlen, arch.hidden))
    streams = 2 if exact else 1
    cost.scratch = 2 * streams * hidden
    passes = 1 if together else groups
    cost.add(read=layers * hidden * streams * passes, write=layers * hidden * (1 + exact))
    waiting = waiting_bytes(arch, tokens) if together and chunks > 1 else shapes.token_memory(chunk * seqlen)
    cost.parts["passes"] = (2 if exact else 1) * shapes.block_memory() + waiting
    for number, tap in enumerate(taps):
        kept = 4 * sum(map(shapes.tap_weights, taps[number:])) if together else 2 * shapes.block_memory()
        for part, nbytes in _tap_memory(shapes, tap, bool(exact)).items():
            cost.parts[part] = max(cost.parts.get(part, 0), waiting + kept + shapes.weights + nbytes)  # a code each


def _error_size(shapes: BlockShapes, tap: Tap) -> int:
    width = shapes.width(tap)
    return error_size(shapes.tap_weights(tap) // width, width)


def _tap_memory(shapes: BlockShapes, tap: Tap, exact: bool) -> dict[str, int]:
    """Bytes of the matrices of one tap: moments and what is added to them; Hessian, factor and the weights' errors."""
    width, weights = shapes.width(tap), shapes.tap_weights(tap)
    error = _error_size(shapes, tap) if exact else 0
    sums = moment_bytes(weights // width, width) if exact else 9 * width**2 // 2
    return {
        "moments": sums + max(4 * error, width**2),
        "rounding": 4 * width**2 + panel_bytes(width) + 8 * error + 4 * weights,
    }


def _simulated(
    cost: StageCost,
    shapes: BlockShapes,
    taps: list[Tap],
    settings: QuantizeSettings,
    tokens: int,
    seqlen: int,
    together: bool,
) -> None:
    """The quantized model's passes: one that waits at every tap, or one that ends at each tap and a last one."""
    layers, scheme = shapes.arch.n_layers, settings.scheme
    kind = "integers" if scheme.number_format == INTEGERS and scheme.a_bits <= KERNEL_BITS else "products32"
    for number, tap in enumerate(taps):
        runs = 1.0 if together else float(len(taps) - number)
        share = shapes.share(tap.expert)
        cost.work[kind] += runs * layers * tokens * share * 2.0 * shapes.tap_weights(tap)  # type: ignore[assignment]
        rounded = 0.0 if scheme.a_bits == FULL else ROUNDED
        cost.add(elements=(runs + (0.0 if together else 1.0)) * layers * tokens * share * shapes.width(tap) * rounded)
    runs = 1.0 if together else float(len(taps))
    cost.add(
        attention=runs * layers * tokens * shapes.attention_flops(seqlen),
        elements=runs * layers * tokens * shapes.values,
    )
    if scheme.kv_bits != FULL:
        cost.add(elements=runs * layers * tokens * ROUNDED * 2.0 * shapes.arch.sizes["kv"])


def _rounding(cost: StageCost, shapes: BlockShapes, tap: Tap, settings: QuantizeSettings, hessians: bool) -> None:
    """The rows of one tap in all layers: by GPTQ, whose factor is counted elsewhere, or rounded to nearest."""
    layers, width, weights = shapes.arch.n_layers, shapes.width(tap), float(shapes.tap_weights(tap))
    if settings.mse_clip:
        cost.add(search=layers * weights)
    cost.add(elements=layers * 4.0 * weights)
    if not hessians:
        return
    scheme = settings.scheme
    tried = PROPOSAL * (1 + len(RATIOS)) if searched_group(scheme, settings.options(), width) else 0.0
    cost.add(columns=layers * weights * (1.0 + tried))
    fitted = fits_scales(scheme, settings.options(), width)
    cost.add(products32=layers * weights * width * (9.0 if fitted else 5.0))  # updates once, output errors twice


@contextmanager
def _shared_rows(cost: StageCost, shapes: BlockShapes, tap: Tap) -> Iterator[None]:
    """Let ranks share the rows of a tap: all get Hessian, factor and rows in float32, and everybody's results."""
    layers, width, weights = shapes.arch.n_layers, shapes.width(tap), shapes.tap_weights(tap)
    tiles = len(row_slices(weights // width, width))
    sent = layers * (4.0 * (width**2 + panel_values(width)) + 5.0 * weights)
    with cost.shared(tiles, sent=sent, exchanges=2.0 * layers, passed_on=True):
        yield


def _factor(cost: StageCost, shapes: BlockShapes, tap: Tap, settings: QuantizeSettings) -> None:
    """The factor of one tap's Hessian and the compensation of its weights, in all layers."""
    layers, width, weights = shapes.arch.n_layers, shapes.width(tap), float(shapes.tap_weights(tap))
    cost.add(factor64=layers * FACTOR * width**3)
    if settings.compensation:
        solved = min(weights / width, float(width))
        cost.add(
            factor64=layers * (width**3 / 3.0 + 2.0 * solved * width**2), products32=layers * 2.0 * weights * width
        )
