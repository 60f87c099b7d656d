"""What `dfq rotate` will do to a checkpoint, decided once: `--plan` shows it, the run follows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch, Space
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs import open_described_model
from dfrot.quant.config import DfqConfig
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.rotation.online import OnlineRotations
from dfrot.rotation.transforms import Transforms
from dfrot.runtime.transformers_reading import check_reading
from dfrot.stages.rotate.settings import AUTO, NONE, SMOOTH, RotateSettings
from dfrot.stages.rotate.windows import RotateWindows, draw_windows
from dfrot.stages.tune.plan import untunable
from dfrot.transforms import AUTO_TRANSFORMS, SMOOTH_TRANSFORMS, TRANSFORMS, FreeTransform, parse_transform
from dfrot.vision.llava_layout import has_vision_part, vision_digest


@dataclass(frozen=True)
class RotatePlan:
    """Everything that is read and decided before any work."""

    checkpoint: Checkpoint
    """The source checkpoint."""
    arch: BoundArch
    """Its architecture."""
    settings: RotateSettings
    """What was asked for, with what was left to the architecture decided."""
    online: OnlineRotations
    """The online rotations that the result declares."""
    windows: RotateWindows
    """The tokens that it is computed from."""
    transforms: tuple[tuple[FreeTransform, str], ...]
    """The transforms that were asked for, with their modes, in the order in which they are solved."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the bytes of the result."""

    @property
    def rotates(self) -> bool:
        """Whether weights change at all."""
        return self.settings.method != "none"

    @property
    def missing(self) -> dict[str, str]:
        """Rotations that were asked for and that this architecture cannot have, by name, and why."""
        reason = self.arch.spec.refuses(Space.RESIDUAL)
        return {"R1": reason} if reason is not None and self.settings.turns else {}

    @property
    def uses_r1(self) -> bool:
        """Whether the residual space is rotated."""
        return self.settings.turns and "R1" not in self.missing

    @property
    def head_block(self) -> int | None:
        """Width of R2's blocks; None where it rotates whole heads."""
        return min(self.settings.block, self.arch.head_dim) if self.settings.block else None

    @property
    def adds_biases(self) -> bool:
        """Whether attention gets biases, which `config.json` must announce."""
        return any("value_shift" in transform.fills for transform, _ in self.transforms)

    @property
    def gated(self) -> bool:
        """Whether the result is compared with the source before it is published."""
        return self.settings.gate and self.rotates

    @property
    def rotation_bytes(self) -> int:
        """Bytes of R1 and R2, float64."""
        r1 = self.arch.hidden**2 if self.uses_r1 else 0
        r2 = self.arch.n_layers * self.arch.head_dim**2 if self.settings.turns else 0
        return 8 * (r1 + r2)

    def layout(self) -> Fuser:
        """A fuser that knows the tensors of the result, and holds no matrix yet."""
        r1 = torch.empty(1, dtype=torch.float64).expand(self.arch.hidden, self.arch.hidden) if self.uses_r1 else None
        shape = Transforms().shapes(self.arch)["value_shift"]
        shift = torch.zeros(1, dtype=torch.float64).expand(shape) if self.adds_biases else None
        maps = Transforms(value_shift=shift)
        return Fuser(self.checkpoint, self.arch, Rotations(r1=r1, r4=self.online.r4), maps)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, as `--plan` shows it."""
        layout = self.layout()
        hadamard = self.settings.method in ("dfrot", "hadamard") and self.uses_r1
        return {
            "model_type": self.arch.spec.model_type,
            "method": self.settings.method,
            "bytes": sum(tensor.nbytes for tensor in layout.plan()) + self.rotation_bytes,
            "units": len(layout.units()),
            "r1": hadamard_plan(self.arch.hidden).to_dict() if hadamard else None,
            "without": self.missing,
            "online": self.online.to_dict(),
            "transforms": [f"{transform.name}:{mode}" for transform, mode in self.transforms],
            "calibration_tokens": 0 if self.windows.rows is None else self.windows.rows.numel(),
            "gate_tokens": self.windows.gate.numel() if self.gated else 0,
            **self.checkpoint.resolution(),
        }


def plan_rotation(model: Path, settings: RotateSettings) -> RotatePlan:
    """Read checkpoint folder `model` and decide what `settings` mean for it.

    Raises what `rotate` raises before work starts: UnsupportedError for a checkpoint that dfq has rotated already or
    whose architecture refuses the method, InputError for a dataset or a tokenizer that does not serve."""
    checkpoint, arch = open_described_model(model)
    check_reading(checkpoint, arch)
    config_file = str(checkpoint.path / "config.json")
    if DfqConfig.of(checkpoint.config, config_file) is not None:
        raise UnsupportedError(
            f"{config_file}: is rotated (or quantized) by dfq already; start from the original checkpoint",
            file=config_file,
        )
    decided = plan_unread(checkpoint, arch, settings, config_file)
    windows = draw_windows(checkpoint, arch, decided.settings, bool(decided.transforms))
    request = {"source": checkpoint.digest(), "settings": asdict(decided.settings), "dataset": windows.source}
    if has_vision_part(checkpoint.path):
        request["vision"] = vision_digest(checkpoint.path)
    return replace(decided, windows=windows, request=request)


def plan_unread(checkpoint: Checkpoint, arch: BoundArch, settings: RotateSettings, config_file: str) -> RotatePlan:
    """What `settings` mean for an architecture, without a text: no weight is read, and no token.

    Raises UnsupportedError where the architecture refuses the method."""
    settings = _for_architecture(arch, settings)
    online = _online_rotations(arch, settings, config_file)
    transforms = _transforms(arch, settings, config_file)
    if settings.learn and (reason := _unlearnable(checkpoint, arch)) is not None:
        raise UnsupportedError(f"{config_file}: {reason}; leave out `learn`", field="learn", file=config_file)
    no_windows = RotateWindows(torch.empty(1, 0, dtype=torch.int64))
    return RotatePlan(checkpoint, arch, settings, online, no_windows, transforms, {})


def _unlearnable(checkpoint: Checkpoint, arch: BoundArch) -> str | None:
    """Why R1, which the architecture can have, cannot be learned from the model's predictions, or None."""
    kind = "VLMs and mixtures of experts" if has_vision_part(checkpoint.path) else untunable(arch, DfqConfig())
    return None if kind is None else f"R1 of {kind} cannot be learned yet"


def _for_architecture(arch: BoundArch, settings: RotateSettings) -> RotateSettings:
    """The settings with `align` and `transform` decided where they are left to the architecture.

    Without online rotations the result is for engines that quantize weights alone, which neither serves."""
    possible = settings.dataset is not None and settings.turns and settings.online
    align, transform = settings.align, settings.transform
    if align is None:
        align = possible and not settings.block and not settings.a_sym and arch.spec.refuses(Space.RESIDUAL) is None
    if transform == (AUTO,):
        transform = tuple(name for name in AUTO_TRANSFORMS if possible and TRANSFORMS[name].refuses(arch) is None)
        transform = SMOOTH_TRANSFORMS if settings.method == SMOOTH else transform
    elif transform == (NONE,):
        transform = ()
    return replace(settings, align=align, transform=transform)


def _transforms(arch: BoundArch, settings: RotateSettings, config_file: str) -> tuple[tuple[FreeTransform, str], ...]:
    """The transforms that are asked for, in the order in which they are solved.

    Raises InputError for an unknown name or one given twice, UnsupportedError where the architecture refuses."""
    chosen: dict[str, tuple[FreeTransform, str]] = {}
    for text in settings.transform:
        transform, mode = parse_transform(text)
        if transform.name in chosen:
            raise InputError(f"`transform`: {transform.name} is given twice", field="transform")
        if reason := transform.refuses(arch):
            raise UnsupportedError(
                f"{config_file}: {reason}; leave `transform={transform.name}` out", field="transform", file=config_file
            )
        if "norm" in transform.fills and settings.method != SMOOTH:
            raise InputError(
                f"`transform`: {transform.name} tells channels apart that R1 mixes; take `method=smooth`",
                field=("transform", "method"),
            )
        chosen[transform.name] = (transform, mode)
    return tuple(chosen[name] for name in TRANSFORMS if name in chosen)


def _online_rotations(arch: BoundArch, settings: RotateSettings, config_file: str) -> OnlineRotations:
    """R3 and R4, where they are wanted. Raises UnsupportedError for a method that is about R1, where there is none, and
    for a block that fits none of the widths."""
    if not settings.turns:
        return OnlineRotations()
    if settings.align and (reason := arch.spec.refuses(Space.RESIDUAL)):
        raise UnsupportedError(f"{config_file}: {reason}; leave `align` out", field="align", file=config_file)
    if settings.method != "hadamard" and (reason := arch.spec.refuses(Space.RESIDUAL)):
        raise UnsupportedError(
            f"{config_file}: {reason}; `method={settings.method}` is about R1: take `method=hadamard`, which gives "
            "this model R2, R3 and R4",
            field="method",
            file=config_file,
        )
    if settings.block:
        for width in (arch.hidden, max(arch.head_dim, settings.block)):
            hadamard_plan(width, settings.block)  # raises where the block does not fit
    if not settings.online:
        return OnlineRotations()
    r4 = hadamard_plan(arch.intermediate, settings.r4_block or settings.block)
    return OnlineRotations(r3=hadamard_plan(arch.head_dim), r4=r4)
