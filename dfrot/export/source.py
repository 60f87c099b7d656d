"""The checkpoint to export, opened and held against a target: everything the target cannot say is refused here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dfrot.arch import BoundArch, describe, with_described_names
from dfrot.arch.gguf import GGUF_ARCHS
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.fit import fit, without_activations
from dfrot.export.float16_scales import Float16Rounding
from dfrot.export.targets import ExportTarget, Storage, engine_activation_clip
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import LinearPlan, check_packed, plan_linears
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.rotation.online import HadamardSpec
from dfrot.vision import carry as vision
from dfrot_kernels.layouts import PackedWeight

DENSE = QuantScheme(FULL, FULL, FULL)


@dataclass
class ExportSource:
    """scheme: what the export will say. storage: how integers are kept, None for 16-bit weights. plans: the packed
    linears by full name. kept: linears that stay in 16 bits. r4: the online rotation to write, if any. notes: what
    the user should know. rounding: what float16 scales cost."""

    checkpoint: Checkpoint
    arch: BoundArch
    target: ExportTarget
    scheme: QuantScheme
    storage: Storage | None
    plans: dict[str, LinearPlan]
    kept: tuple[str, ...]
    r4: HadamardSpec | None = None
    notes: list[str] = field(default_factory=list)
    rounding: Float16Rounding = field(default_factory=Float16Rounding)

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype: that of its embedding."""
        return self.checkpoint.entry(f"{self.arch.spec.embed}.weight").dtype

    def parts(self) -> Iterator[tuple[str, str, str, LinearPlan | None]]:
        """Every tensor in the checkpoint's order: its name, module and kind, and the packed linear that it codes; None
        for what is carried over as it is, biases of packed linears among it."""
        for name in self.checkpoint.entries:
            module, _, kind = name.rpartition(".")
            yield name, module, kind, self.plans.get(module) if kind != "bias" else None

    def weight(self, name: str) -> PackedWeight:
        """One packed linear, as stored. Raises InputError for zero codes that its bits cannot hold."""
        plan, read = self.plans[name], self.checkpoint.read
        zero = None if plan.w_sym else read(f"{name}.weight_zero")
        if zero is not None and zero.numel() and int(zero.max()) >= 2**plan.w_bits:
            raise InputError(f"tensor {name}.weight_zero holds codes beyond {plan.w_bits} bits; make it again")
        packed, scale = read(f"{name}.weight_packed"), read(f"{name}.weight_scale")
        return PackedWeight(packed, scale, zero, plan.w_bits, plan.group, (plan.rows, plan.cols))


def open_source(
    model: Path, target: ExportTarget, wanted: QuantScheme | None = None, online_r4: bool = False
) -> ExportSource:
    """Open `model` for `target`, reading no weight. wanted: the scheme to write, with the source's weights (only
    activations and KV cache may differ). online_r4: write R4 as an online transform, where the target can.

    Raises UnsupportedError in one line, with what would work, for what the target cannot represent."""
    checkpoint = Checkpoint.open(model)
    where = str(checkpoint.path / "config.json")
    config = DfqConfig.of(checkpoint.config, where)
    arch = describe(checkpoint.config, where)
    vision.refuse_vision_part(model, "the export")
    if arch.wrapper is not None:
        raise UnsupportedError(
            f"{model}: exports of models that see ({arch.wrapper.model_type}) are not supported; serve it with dfq"
        )
    checkpoint = with_described_names(checkpoint, arch)
    if arch.spec.experts is not None:
        raise UnsupportedError(f"{model}: a mixture of experts is exported to no format yet; run it with dfq")
    plans = plan_linears(arch, config, where) if config is not None else {}
    packed = {name: plan for name, plan in plans.items() if plan.packed}
    if packed:
        check_packed(checkpoint, arch, plans)
    else:
        arch.check(checkpoint)
    scheme = _scheme(model, config, wanted)
    notes: list[str] = []
    r4 = _runtime(model, target, config, scheme, online_r4, notes)
    found = fit(target, scheme)
    if found.reason is not None:
        raise UnsupportedError(
            f"{model}: {target.name} cannot hold {scheme.name}: {found.reason}; {_remedy(found.instead, scheme)}"
        )
    if target.described and arch.spec.model_type not in GGUF_ARCHS:
        raise UnsupportedError(f"{model}: {arch.spec.model_type} is not described in dfrot/arch/gguf.py; add it there")
    kept = config.keep if config is not None else ()
    _linears(model, target, found.storage, arch, packed, kept)
    if scheme.a_bits != FULL and abs(scheme.a_clip - engine_activation_clip(scheme.a_bits)) > 1e-6:
        notes.append(
            f"engines scale {scheme.a_bits}-bit activations by max/{2 ** (scheme.a_bits - 1) - 0.5:g}: quantize with "
            f"--a-clip {engine_activation_clip(scheme.a_bits):.7f} to calibrate for, and evaluate, what is served"
        )
    if found.storage is not None and target.name == "compressed-tensors" and not found.storage.symmetric:
        notes.append(
            "transformers 5 loads asymmetric weights of this format with CompressedTensorsConfig(dequantize=True)"
        )
    return ExportSource(checkpoint, arch, target, scheme, found.storage, packed, kept, r4, notes)


def _scheme(model: Path, config: DfqConfig | None, wanted: QuantScheme | None) -> QuantScheme:
    """What to write: the source's scheme, or `wanted` when its weights are the source's."""
    if config is not None and config.fake:
        raise UnsupportedError(f"{model}: is a simulated checkpoint; quantize without --fake to export integers")
    own = config.scheme if config is not None and config.scheme is not None else DENSE
    if wanted is None or wanted.name == own.name:
        return own
    if without_activations(wanted) != without_activations(own):
        action = "quantize the 16-bit checkpoint with it first" if own.w_bits == FULL else "quantize again with it"
        raise UnsupportedError(
            f"--scheme {wanted.name}: the weights of {model} are {own.name}; {action} (dfq quantize)"
        )
    return wanted


def _remedy(instead: str | None, scheme: QuantScheme) -> str:
    assert instead is not None
    other = QuantScheme.parse(instead)
    if scheme.w_bits == FULL:
        return f"quantize it first (dfq quantize --scheme {instead})"
    if without_activations(other) == without_activations(scheme):
        return f"export the same weights with --scheme {instead}"
    return f"quantize again with --scheme {instead}"


def _runtime(
    model: Path, target: ExportTarget, config: DfqConfig | None, scheme: QuantScheme, online_r4: bool, notes: list[str]
) -> HadamardSpec | None:
    """What our runtime does besides integers: refused, or proven to make no difference."""
    if online_r4 and (config is None or config.online.r4 is None):
        raise UnsupportedError(f"--online-r4: {model} has no online rotation R4; leave the option out")
    if config is None:
        return None
    engines = ", ".join(target.engines)
    if config.resets:
        raise UnsupportedError(
            f"{model}: resets massive activations while running, which {engines} cannot; rotate the original instead"
        )
    if config.sink_tokens and scheme.a_bits != FULL:
        raise UnsupportedError(
            f"{model}: keeps {config.sink_tokens} sink tokens exact, which {engines} cannot; quantize with "
            "--sink-tokens 0"
        )
    if config.a_clips and scheme.a_bits != FULL:
        raise UnsupportedError(
            f"{model}: has activation clips per linear, which {engines} cannot; quantize without --a-clip auto"
        )
    if config.online.r3 is not None:
        notes.append("R3 is left out: without a quantized KV cache it cancels in every query-key product")
    r4 = config.online.r4
    if r4 is None:
        return None
    if not target.online_r4:
        raise UnsupportedError(
            f"{model}: expects the online rotation R4, which {engines} cannot apply; rotate with --no-online"
        )
    if not online_r4:
        raise UnsupportedError(
            f"{model}: expects the online rotation R4, which transformers would leave out without a word; rotate with "
            "--no-online, or ask for it with --online-r4"
        )
    if r4.bases:
        raise UnsupportedError(
            f"{model}: R4 has blocks of {r4.block}, the format knows powers of two; rotate with --r4-block "
            f"{r4.block & -r4.block}"
        )
    notes.append(
        "R4 is written as an online transform: vLLM applies it (tensor parallel 1, no bias), transformers ignores it "
        "and computes nonsense; ask other engines before relying on them"
    )
    return r4


def _linears(
    model: Path,
    target: ExportTarget,
    storage: Storage | None,
    arch: BoundArch,
    plans: dict[str, LinearPlan],
    kept: tuple[str, ...],
) -> None:
    """Shapes and exceptions of single linears."""
    head = arch.spec.head.name
    if plans and not target.keeps and (others := [name for name in kept if name != head]):
        raise UnsupportedError(
            f"{model}: keeps {others[0]} in 16 bits, {target.name} only the head; quantize with --keep {head}"
        )
    if head in plans and not target.quantized_head:
        raise UnsupportedError(
            f"{model}: its head is quantized, engines read {target.name} with a 16-bit head; quantize with --keep "
            f"{head}"
        )
    rows, cols = target.align
    for name, plan in plans.items():
        group = plan.group or (storage.block if storage is not None else 0)
        if plan.rows % rows or plan.cols % cols or (group and plan.cols % group):
            raise UnsupportedError(
                f"{model}: {name} is {plan.rows} x {plan.cols}; {target.name} needs multiples of {rows} x "
                f"{max(cols, group)}: quantize with --keep {name.rsplit('.', 1)[-1]}"
                + ("" if target.keeps else " and export to another format")
            )
