"""The cells of a comparison: one row at one scheme and seed each, grouped by the rotated checkpoint that they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.compare.rows import NO_ROTATION, ROTATIONS, ROWS, Row
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.tune.settings import TuneSettings

BASELINE = "bf16"


@dataclass(frozen=True)
class ComparisonCell:
    """A checkpoint to make and measure."""

    scheme: str
    """Name of the scheme."""
    row_name: str
    """Name of its row."""
    seed: int | None
    """Seed of everything random; None where nothing is."""

    @property
    def name(self) -> str:
        """Its name in the report."""
        return f"{self.scheme}-{self.row_name}" + ("" if self.seed is None else f"-{self.seed}")

    @property
    def row(self) -> Row:
        """Its row."""
        return ROWS[self.row_name]

    def quantize_settings(self, settings: CompareSettings) -> QuantizeSettings:
        """How its checkpoint is quantized."""
        scheme = replace(settings.parsed()[self.scheme], **self.row.scheme)
        return QuantizeSettings(scheme=scheme, **self.row.quantize)

    def calibrate_settings(self, settings: CompareSettings) -> CalibrateSettings | None:
        """How its rotated checkpoint is calibrated; None for a row without calibration."""
        if not self.row.calibrated:
            return None
        return CalibrateSettings(
            dataset=settings.dataset,
            samples=settings.samples,
            seqlen=settings.calibration_seqlen,
            seed=settings.seed if self.seed is None else self.seed,
            # GPTQ collects its own statistics while errors propagate
            **{"hessians": False, "statistics": False, **self.row.calibrate},
        )

    def tune_settings(self, settings: CompareSettings) -> TuneSettings | None:
        """How its quantized checkpoint is tuned; None for a row that is not."""
        if not self.row.tuned:
            return None
        seqlen = min(TuneSettings.seqlen, settings.calibration_seqlen)
        return TuneSettings(dataset=settings.dataset, steps=settings.tune, seqlen=seqlen, seed=self.seed or 0)


@dataclass(frozen=True)
class ComparisonGroup:
    """Cells that share a rotated checkpoint."""

    settings: RotateSettings | None
    """How to rotate; None for the source checkpoint itself."""
    cells: tuple[ComparisonCell, ...]
    """The cells, in the order of the table."""
    name: str
    """Its name in the report."""


def comparison_cells(settings: CompareSettings) -> list[ComparisonCell]:
    """All cells, in the order of the table."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return [
        ComparisonCell(scheme, name, seed)
        for scheme in settings.schemes
        for name in settings.row_names
        for seed in (seeds if ROWS[name].random else [None])
    ]


def comparison_groups(settings: CompareSettings) -> Iterator[ComparisonGroup]:
    """All cells by the rotation that they share, in the order of work.

    The refined rotation depends on the activation quantizer, so schemes that differ there cannot share it; the other
    rotations do not depend on the scheme."""
    cells = comparison_cells(settings)
    for rotation in ROTATIONS:
        shared: dict[RotateSettings | None, list[ComparisonCell]] = {}
        of_rotation = [cell for cell in cells if cell.row.rotation == rotation]
        for cell in sorted(of_rotation, key=lambda cell: -1 if cell.seed is None else cell.seed):
            shared.setdefault(rotate_settings(settings, cell), []).append(cell)
        for rotating, members in shared.items():
            seed = [] if rotating is None else [str(rotating.seed)]
            schemes = dict.fromkeys(cell.scheme for cell in members)
            yield ComparisonGroup(rotating, tuple(members), "-".join([rotation, *seed, *schemes]))


def rotate_settings(settings: CompareSettings, cell: ComparisonCell) -> RotateSettings | None:
    """How the source checkpoint of a cell is rotated; None where it is not."""
    if cell.row.rotation == NO_ROTATION:
        return None
    assert cell.seed is not None
    rotating = RotateSettings(
        dataset=settings.dataset, seqlen=settings.refine_seqlen, seed=cell.seed, **ROTATIONS[cell.row.rotation]
    )
    if rotating.method != "dfrot":
        return rotating
    quantizing = cell.quantize_settings(settings)
    scheme, clip = quantizing.scheme, quantizing.clip
    return replace(rotating, gamma=settings.gamma, a_bits=scheme.a_bits, a_sym=scheme.a_sym, a_clip=clip)
