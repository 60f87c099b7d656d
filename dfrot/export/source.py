"""The checkpoint to export, opened and checked against a target before its weights are converted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from dfrot.arch import BoundArch, resolve
from dfrot.arch.gguf import GGUF_ARCHS
from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.export.fit import fit
from dfrot.export.float16_scales import Float16Rounding
from dfrot.export.requirements import check_linears, check_runtime, check_tables, requested_scheme, suggestion
from dfrot.export.targets import ExportTarget, Storage, engine_activation_clip
from dfrot.inputs import open_model
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import TENSOR as KEY_SHIFT
from dfrot.quant.modules.checked import check_packed_weight
from dfrot.quant.plan import LinearPlan, check_stored, plan_linears
from dfrot.quant.rounding.fp4_grid import Fp4Weight
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.rotation.online import HadamardSpec
from dfrot.runtime.transformers_reading import check_reading
from dfrot.vision import carry as vision
from dfrot_kernels.layouts import PackedWeight


class SourceTensor(NamedTuple):
    """A tensor of the source checkpoint."""

    name: str
    """Full name: `{module}.{kind}`."""
    module: str
    """Full name of its module, for instance `model.layers.0.mlp.down_proj`."""
    kind: str
    """Last part of the name: `weight`, `bias`, `weight_packed`, `weight_scale`, `weight_zero`, ..."""
    plan: LinearPlan | None
    """The packed linear that it encodes; None for tensors that are copied, biases of packed linears included."""


@dataclass
class ExportSource:
    """A checkpoint and how a target will hold it."""

    checkpoint: Checkpoint
    """The source checkpoint, with the tensor names of its architecture's description."""
    arch: BoundArch
    """Its architecture."""
    target: ExportTarget
    """The format to write."""
    scheme: QuantScheme
    """The scheme that the export declares."""
    storage: Storage | None
    """How integer weights are kept; None for 16-bit weights."""
    plans: dict[str, LinearPlan]
    """The packed linears by full name."""
    kept: tuple[str, ...]
    """Linears that stay in 16 bits."""
    tables: dict[str, Storage] = field(default_factory=dict)
    """How embedding and head are kept where that is not `storage`, by full name."""
    r4: HadamardSpec | None = None
    """The online rotation to write, if any."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about the result."""
    rounding: Float16Rounding = field(default_factory=Float16Rounding)
    """What the conversion of scales to float16 cost."""

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype: that of its embedding or, where this is packed, of its last norm."""
        embed, norm = f"{self.arch.spec.embed}.weight", f"{self.arch.spec.final_norm.name}.weight"
        return self.checkpoint.entry(embed if embed in self.checkpoint else norm).dtype

    def storage_of(self, module: str) -> Storage | None:
        """How the packed weight of `module` is kept."""
        return self.tables.get(module, self.storage)

    def tensors(self) -> Iterator[SourceTensor]:
        """Every tensor, in the checkpoint's order, except the key shifts: they cancel in 16-bit attention."""
        for name in self.checkpoint.entries:
            module, _, kind = name.rpartition(".")
            if kind == KEY_SHIFT:
                continue
            yield SourceTensor(name, module, kind, self.plans.get(module) if kind != "bias" else None)

    def fp4_weight(self, name: str) -> Fp4Weight:
        """The FP4 linear of full name `name`, as stored. Raises InputError for damaged scales."""
        tensors = {part: f"{name}.{part}" for part in ("weight_packed", "weight_scale", "weight_global_scale")}
        read = {part: self.checkpoint.read(full) for part, full in tensors.items() if full in self.checkpoint}
        weight = Fp4Weight(read["weight_packed"], read["weight_scale"], read.get("weight_global_scale"))
        weight.check(name)
        return weight

    def packed_weight(self, name: str) -> PackedWeight:
        """The packed linear of full name `name`, as stored. Raises InputError for zero points beyond its bits."""
        plan, read = self.plans[name], self.checkpoint.read
        zero = None if plan.w_sym else read(f"{name}.weight_zero")
        packed, scale = read(f"{name}.weight_packed"), read(f"{name}.weight_scale")
        weight = PackedWeight(packed, scale, zero, plan.w_bits, plan.group, (plan.rows, plan.cols))
        check_packed_weight(weight, name)
        return weight


@dataclass(frozen=True)
class ReadSource:
    """A checkpoint that was opened and checked, whatever it is exported to."""

    model: Path
    """Its folder."""
    checkpoint: Checkpoint
    """As `ExportSource` has it."""
    arch: BoundArch
    """Its architecture."""
    config: DfqConfig | None
    """What dfq wrote into its config.json."""
    packed: dict[str, LinearPlan]
    """The packed linears by full name."""


def read_source(model: Path) -> ReadSource:
    """Open `model` and check what no target changes. Of the weights it reads a head that a tied configuration stores
    too, and undeclared biases. Raises DfqError."""
    checkpoint = open_model(model)
    where = str(checkpoint.path / "config.json")
    config = DfqConfig.of(checkpoint.config, where)
    checkpoint, arch = resolve(checkpoint, to_run=True)
    _refuse_architectures(model, arch)
    plans = plan_linears(arch, config, where) if config is not None else {}
    packed = {name: plan for name, plan in plans.items() if plan.packed}
    check_stored(checkpoint, arch, config, plans)
    if not packed:
        check_reading(checkpoint, arch)
    return ReadSource(model, checkpoint, arch, config, packed)


def open_source(
    model: Path, target: ExportTarget, scheme: QuantScheme | None = None, online_r4: bool = False
) -> ExportSource:
    """`read_source`, then `fit_source`."""
    return fit_source(read_source(model), target, scheme, online_r4)


def fit_source(
    source: ReadSource, target: ExportTarget, scheme: QuantScheme | None = None, online_r4: bool = False
) -> ExportSource:
    """How `target` will hold a checkpoint.

    Args:
        source: the checkpoint.
        target: the format to write.
        scheme: the scheme to declare; only activations and KV cache may differ from the checkpoint's. None: its own.
        online_r4: write R4 as an online transform, where the target can.

    Raises UnsupportedError in one line, with what would work, for what the target cannot hold.
    """
    model, checkpoint, arch, config, packed = source.model, source.checkpoint, source.arch, source.config, source.packed
    declared = requested_scheme(model, config, scheme)
    notes = list(checkpoint.resolved)
    fitted = fit(target, declared)
    if fitted.reason is not None:
        raise UnsupportedError(
            f"{model}: {target.name} cannot hold {declared.name}: {fitted.reason}; "
            f"{suggestion(fitted.instead, declared)}",
            field="scheme",
        )
    r4 = check_runtime(model, target, config, declared, online_r4, notes)
    if target.needs_described_names and arch.spec.model_type not in GGUF_ARCHS:
        raise UnsupportedError(f"{model}: {arch.spec.model_type} is not described in dfrot/arch/gguf.py; add it there")
    kept = config.keep if config is not None else ()
    names = {"embed": arch.spec.embed, "head": arch.spec.head.name}
    tables = {names[role]: storage for role, storage in check_tables(model, target, config, declared).items()}
    check_linears(model, target, lambda name: tables.get(name, fitted.storage), arch.spec.head.name, packed, kept)
    notes += _notes_on_loading(target, declared, fitted.storage)
    return ExportSource(checkpoint, arch, target, declared, fitted.storage, packed, kept, tables, r4, notes)


def _refuse_architectures(model: Path, arch: BoundArch) -> None:
    """Raise UnsupportedError for VLMs and mixtures of experts."""
    vision.refuse_vision_part(model, "the export")
    if arch.wrapper is not None:
        raise UnsupportedError(
            f"{model}: exports of VLMs ({arch.wrapper.model_type}) are not supported; serve it with dfq"
        )
    if arch.spec.experts is not None:
        raise UnsupportedError(f"{model}: a mixture of experts is exported to no format yet; run it with dfq")


def _notes_on_loading(target: ExportTarget, scheme: QuantScheme, storage: Storage | None) -> list[str]:
    """What users of the engines should know. The notes are part of the record of an export."""
    notes: list[str] = []
    if scheme.number_format != INTEGERS:
        return notes
    if scheme.a_bits != FULL and abs(scheme.a_clip - engine_activation_clip(scheme.a_bits)) > 1e-6:
        notes.append(
            f"engines scale {scheme.a_bits}-bit activations by max/{2 ** (scheme.a_bits - 1) - 0.5:g}: quantize with "
            f"--a-clip {engine_activation_clip(scheme.a_bits):.7f} to calibrate for, and evaluate, what is served"
        )
    if storage is not None and target.name == "compressed-tensors" and not storage.symmetric:
        notes.append(
            "transformers 5 loads asymmetric weights of this format with CompressedTensorsConfig(dequantize=True)"
        )
    return notes
