"""What a dfq configuration means for every linear of a model and for its embedding: the one place that decides how each
is quantized."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dfrot.arch import BoundArch, Space
from dfrot.arch.bound import ROTARY_TABLE
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import key_shift_tensors, refuses_key_shift
from dfrot.quant.scheme import FP4_GROUPS, FULL, INTEGERS, MIN_CLIP, NVFP4
from dfrot.rotation.online import HadamardSpec

SCALES = torch.finfo(torch.float32)
"""Range of the constant scales of NVFP4 inputs."""


@dataclass(frozen=True)
class LinearPlan:
    """One linear that does more than `x W^T + b`, or an embedding that is no dense table."""

    name: str
    """Full module name."""
    rows: int
    """N: output channels."""
    cols: int
    """K: input channels."""
    packed: bool
    """The weight is stored as codes with scales, not as floats."""
    w_bits: int
    """Bits of the weight."""
    group: int
    """Columns that share a weight scale; 0: per row."""
    w_sym: bool
    """The weight has no zero codes."""
    a_bits: int = FULL
    """Bits of the rotated input, quantized per token."""
    a_sym: bool = False
    """The input has no zero code."""
    a_clip: float = 1.0
    """Clip ratio of the input."""
    hadamard: HadamardSpec | None = None
    """Rotation of the input before anything else (R4)."""
    lookup: bool = False
    """An embedding: its rows are looked up, and nothing is multiplied."""
    number_format: str = INTEGERS
    """What weight and input are: `int`, or the name of a format of FP4."""
    a_scale: float | None = None
    """The constant scale of an NVFP4 input."""
    second_rows: int = 0
    """Stored rows behind the first N, each of which is added to one of them (dfrot/quant/second_rows.py)."""

    @property
    def stored_rows(self) -> int:
        """Rows of the packed tensors."""
        return self.rows + self.second_rows

    @property
    def groups(self) -> int:
        """Weight scales of a row."""
        return -(-self.cols // self.group) if self.group else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed row: a dense little-endian bit string."""
        return -(-self.cols * self.w_bits // 8)


def _check(arch: BoundArch, config: DfqConfig, where: str) -> None:
    """Raise InputError where the configuration does not fit the model."""
    known = {name for _, _, name in arch.linears()} | {arch.spec.head.name}
    listed = {"keep": config.keep, "a_clips": config.a_clips, "a_bits": config.a_bits, "a_scales": config.a_scales}
    for label, names in listed.items():
        if unknown := sorted(set(names) - known):
            raise InputError(f"{where}: {label} names {unknown[0]}, which is no linear of this model")
    for name, scale in config.a_scales.items():
        if not SCALES.tiny <= scale <= SCALES.max:
            raise InputError(f"{where}: the scale {scale} of the input of {name} is no positive float32")
    for name, clip in config.a_clips.items():
        if not MIN_CLIP <= clip <= 1.0:
            raise InputError(f"{where}: activation clip ratio {clip} of {name} is outside {MIN_CLIP:g}..1")
    for name, bits in config.a_bits.items():
        if bits not in range(2, 9):
            raise InputError(f"{where}: {bits}-bit activations of {name} are outside 2..8")
        if config.scheme is None or config.scheme.a_bits == FULL or name in config.keep:
            raise InputError(f"{where}: a_bits names {name}, whose activations stay in 16 bits")
    for label, spec, size in (
        ("r3", config.online.r3, arch.head_dim),
        ("r4", config.online.r4, arch.intermediate),
    ):
        if spec is not None and spec.size != size:
            raise InputError(f"{where}: online rotation {label} has size {spec.size}, the model needs {size}")
    blocks = {arch.prefix(layer) for layer in range(arch.n_layers)}
    for reset in config.resets:
        if reset.module not in blocks or reset.channel >= arch.hidden:
            raise InputError(f"{where}: reset of channel {reset.channel} behind {reset.module}: no such place here")
    if config.shifts_keys and (reason := _refuses_shift(arch, config)):
        raise InputError(f"{where}: key_shift: {reason}", field="key_shift")
    if config.sink_tokens < 0:
        raise InputError(f"{where}: sink_tokens is {config.sink_tokens}, it cannot be negative")


def _refuses_shift(arch: BoundArch, config: DfqConfig) -> str | None:
    if config.scheme is None or config.scheme.kv_bits == FULL:
        return "keys are kept in 16 bits"
    return refuses_key_shift(arch)


def plan_linears(arch: BoundArch, config: DfqConfig, where: str = "config.json") -> dict[str, LinearPlan]:
    """The linears, and the embedding, that need one of our modules, by full name. Raises InputError on an inconsistent
    config."""
    _check(arch, config, where)
    plans = _plan_embedding(arch, config)
    scheme = config.scheme
    declared = [(linear, name) for _, linear, name in arch.linears()]
    declared.append((arch.spec.head, arch.spec.head.name))
    for linear, name in declared:
        table = config.head if name == arch.spec.head.name and config.head.quantized else None
        quantized = scheme is not None and table is None and name not in config.keep
        hadamard = config.online.r4 if linear.reads == Space.MLP else None
        rows, cols = arch.shape(linear)
        w_bits = table.bits if table else scheme.w_bits if quantized and scheme else FULL
        inputs = config.activations_of(name) if quantized else None
        a_bits = inputs.a_bits if inputs else FULL
        if w_bits == FULL and a_bits == FULL and hadamard is None:
            continue
        number_format = scheme.number_format if quantized and scheme else INTEGERS
        if number_format != INTEGERS:
            _check_fp4(name, cols, number_format, a_bits, config, where)
        plans[name] = LinearPlan(
            name=name,
            rows=rows,
            cols=cols,
            packed=w_bits != FULL and not config.fake,
            w_bits=w_bits,
            group=table.group if table else scheme.w_group if scheme else 0,
            w_sym=table.symmetric if table else scheme.w_sym if scheme else True,
            a_bits=a_bits,
            a_sym=scheme.a_sym if scheme else False,
            a_clip=inputs.a_clip if inputs else 1.0,
            hadamard=hadamard,
            number_format=number_format,
            a_scale=config.a_scales.get(name),
            second_rows=table.second_rows if table else 0,
        )
    tied = [name for name in (arch.spec.head.name, arch.spec.embed) if name in plans and plans[name].w_bits != FULL]
    if tied and arch.tied:
        raise InputError(f"{where}: {tied[0]} is quantized, but head and embedding share one weight; untie them first")
    return plans


def _check_fp4(name: str, cols: int, number_format: str, a_bits: int, config: DfqConfig, where: str) -> None:
    """Raise UnsupportedError for a linear that does not divide into groups, InputError for one without the constant
    scale that its input needs."""
    group = FP4_GROUPS[number_format]
    if cols % group:
        last = name.rpartition(".")[2]
        raise UnsupportedError(
            f"{where}: {name} has {cols} inputs, which are no groups of {group}; quantize with `keep={last}`",
            field="keep",
        )
    if number_format == NVFP4 and a_bits != FULL and name not in config.a_scales:
        raise InputError(f"{where}: a_scales lacks the input of {name}; restore the file")


def _plan_embedding(arch: BoundArch, config: DfqConfig) -> dict[str, LinearPlan]:
    """The embedding's plan by its name, if it is quantized."""
    table, name = config.embed, arch.spec.embed
    if not table.quantized:
        return {}
    plan = LinearPlan(
        name, arch.vocab_size, arch.hidden, not config.fake, table.bits, table.group, table.symmetric, lookup=True
    )
    return {name: plan}


def packed_tensors(plan: LinearPlan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes that a packed linear has on disk instead of its `weight`."""
    if plan.number_format != INTEGERS:
        return _fp4_tensors(plan)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"{plan.name}.weight_packed": (torch.uint8, (plan.stored_rows, plan.row_bytes)),
        f"{plan.name}.weight_scale": (torch.bfloat16, (plan.stored_rows, plan.groups)),
    }
    if not plan.w_sym:
        tensors[f"{plan.name}.weight_zero"] = (torch.uint8, (plan.stored_rows, plan.groups))
    if plan.second_rows:
        tensors[f"{plan.name}.weight_second"] = (torch.int32, (plan.second_rows,))
    return tensors


def _fp4_tensors(plan: LinearPlan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """As `packed_tensors`: names, dtypes and shapes of compressed-tensors."""
    packed = {f"{plan.name}.weight_packed": (torch.uint8, (plan.rows, plan.row_bytes))}
    scales = (plan.rows, plan.groups)
    if plan.number_format != NVFP4:
        return {**packed, f"{plan.name}.weight_scale": (torch.uint8, scales)}
    return {
        **packed,
        f"{plan.name}.weight_scale": (torch.float8_e4m3fn, scales),
        f"{plan.name}.weight_global_scale": (torch.float32, (1,)),
    }


def check_stored(
    checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig | None, plans: dict[str, LinearPlan]
) -> None:
    """Compare the tensors of a 16-bit, packed or simulated checkpoint with its config. plans: its linears, by
    `plan_linears`. Raises InputError naming tensor and file."""
    shifts = key_shift_tensors(arch, config)
    packed = {name: plan for name, plan in plans.items() if plan.packed}
    if not packed:
        arch.check(checkpoint, shifts)
        return
    expected: dict[str, tuple[torch.dtype | None, tuple[int, ...]]] = {
        name: (None, shape)
        for name, shape in {**arch.tensors(), **arch.biases(), **shifts}.items()
        if name.removesuffix(".weight") not in packed
    }
    for plan in packed.values():
        expected.update(packed_tensors(plan))
    for name, (dtype, shape) in expected.items():
        entry = checkpoint.entry(name)
        if entry.shape != shape:
            raise InputError(
                f"{entry.file}: tensor {name}: shape {list(entry.shape)}, config.json needs {list(shape)}; "
                "make the checkpoint again",
                file=entry.file,
                tensor=name,
            )
        if entry.dtype != dtype if dtype else not entry.dtype.is_floating_point:
            raise InputError(
                f"{entry.file}: tensor {name}: dtype {entry.dtype}, needs {dtype or 'a float type'}",
                file=entry.file,
                tensor=name,
            )
    for name, entry in checkpoint.entries.items():
        is_known = name in expected or name.endswith(ROTARY_TABLE)
        if not is_known and not arch.is_outside(name):
            raise InputError(
                f"{entry.file}: tensor {name} does not belong to this model; is config.json the right one?",
                file=entry.file,
                tensor=name,
            )
