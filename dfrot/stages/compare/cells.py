"""The cells of a comparison: one way each to make a checkpoint, grouped by the rotated checkpoint that they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.rotate.settings import RotateSettings

BASELINE = "bf16"
Method = tuple[str, str]
"""(algorithm, rotation) of a row below the baseline."""
TUNED: Method = ("tuned", "dfrot")  # GPTQ, then dfq tune
LABELS: dict[Method, str] = {
    ("rtn", "none"): "RTN",
    ("rtn", "orthogonal"): "RTN + orthogonal",
    ("rtn", "hadamard"): "RTN + Hadamard",
    ("rtn", "dfrot"): "RTN + DFRot",
    ("gptq", "hadamard"): "GPTQ + Hadamard",
    ("gptq", "dfrot"): "GPTQ + DFRot",
    TUNED: "GPTQ + DFRot, tuned",
}
"""Method -> its row in the table, in order."""
ROTATIONS = ("none", "orthogonal", "hadamard", "dfrot")


@dataclass(frozen=True)
class ComparisonCell:
    """A checkpoint to make and measure."""

    scheme: str
    """Name of the scheme."""
    algorithm: str
    """rtn, gptq or tuned."""
    rotation: str
    """One of ROTATIONS."""
    seed: int | None
    """Seed of the rotation; None where nothing is random."""

    @property
    def name(self) -> str:
        """Its name in the journal and in the report."""
        return f"{self.scheme}-{self.algorithm}-{self.rotation}" + ("" if self.seed is None else f"-{self.seed}")


@dataclass(frozen=True)
class ComparisonGroup:
    """Cells that share a rotated checkpoint."""

    settings: RotateSettings | None
    """How to rotate; None for the source checkpoint itself."""
    cells: tuple[ComparisonCell, ...]
    """The cells, in the order of the table."""
    name: str
    """Its folder, and its name in the report."""


def comparison_groups(settings: CompareSettings) -> Iterator[ComparisonGroup]:
    """All groups, in the order of the table.

    The refined rotation depends on the activation quantizer, so schemes that differ there cannot share it; the other
    rotations do not depend on the scheme."""
    schemes = settings.parsed()
    methods = [method for method in LABELS if settings.tune or method != TUNED]
    for rotation in ROTATIONS:
        algorithms = [algorithm for algorithm, used in methods if used == rotation]
        for seed in [None] if rotation == "none" else range(settings.seed, settings.seed + settings.seeds):
            shared: dict[tuple[Any, ...], list[str]] = {}
            for name, scheme in schemes.items():
                key = (scheme.a_bits, scheme.a_sym, scheme.a_clip) if rotation == "dfrot" else ()
                shared.setdefault(key, []).append(name)
            for names in shared.values():
                cells = [ComparisonCell(name, algorithm, rotation, seed) for name in names for algorithm in algorithms]
                group = "-".join([rotation, *([] if seed is None else [str(seed)]), *names])
                yield ComparisonGroup(_rotate_settings(settings, rotation, seed, names[0]), tuple(cells), group)


def _rotate_settings(
    settings: CompareSettings, rotation: str, seed: int | None, scheme_name: str
) -> RotateSettings | None:
    if seed is None:
        return None
    scheme = settings.parsed()[scheme_name]
    return RotateSettings(
        method=rotation,
        dataset=settings.dataset,
        seqlen=settings.refine_seqlen,
        seed=seed,
        gamma=settings.gamma,
        a_bits=scheme.a_bits,
        a_sym=scheme.a_sym,
        a_clip=scheme.a_clip,
    )
