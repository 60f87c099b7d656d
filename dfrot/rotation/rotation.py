"""Rotation: the matrices R1 and R2 with where they come from, checked, saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfrot.checkpoint import read_header, read_metadata, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError

ROTATION_FILE = "rotation.safetensors"
TOLERANCE = 1e-12  # |R^T R - I|_max that fusing accepts, float64
ROWS = 512  # rows per step of the checks: bounds their temporaries


@dataclass(frozen=True)
class Rotation:
    """matrix: float64 [d, d], rows convention `x -> x R`; or [n, d, d] for one matrix per layer."""

    matrix: Tensor
    kind: str
    seed: int

    def __post_init__(self) -> None:
        shape = tuple(self.matrix.shape)
        if self.matrix.dtype != torch.float64 or len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            raise InputError(f"rotation {self.kind}: {self.matrix.dtype} {list(shape)} is not square float64")

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    def orthogonality_error(self) -> float:
        """|R^T R - I|_max in float64 (the worst of all layers)."""
        errors = [_error(matrix) for matrix in self.matrix.reshape(-1, self.size, self.size)]
        return float(torch.stack(errors).max()) if errors else 0.0  # unlike Python's, this max passes NaN on

    def require_orthogonal(self) -> float:
        """The orthogonality error; raises InputError when fusing this matrix would change the model."""
        error = self.orthogonality_error()
        if not error < TOLERANCE:  # NaN is refused too
            raise InputError(
                f"rotation {self.kind}: |R^T R - I| is {error:.2g}, fusing needs less than {TOLERANCE:g}; "
                "orthogonalise it, or make it again"
            )
        return error

    def save(self, path: Path, name: str = "R1") -> None:
        """A file with this one rotation."""
        save_rotations(path, {name: self})

    @classmethod
    def load(cls, path: Path, name: str = "R1") -> Rotation:
        """The rotation stored under `name`; kind and seed come from the file's metadata."""
        found = load_rotations(path)
        if name not in found:
            raise MismatchError(f"{path}: holds no rotation {name} (found: {', '.join(found) or 'none'})")
        return found[name]


def _error(matrix: Tensor) -> Tensor:
    size = matrix.shape[0]
    worst = torch.zeros((), dtype=torch.float64)
    for begin in range(0, size, ROWS):
        gram = matrix[:, begin : begin + ROWS].T @ matrix
        gram.diagonal(begin).sub_(1.0)
        worst = torch.maximum(worst, gram.abs_().max())
    return worst


def save_rotations(path: Path, rotations: dict[str, Rotation]) -> None:
    """Write rotations to one safetensors file, atomically (written aside, synced, renamed)."""
    metadata = {f"{name}.kind": rotation.kind for name, rotation in rotations.items()}
    metadata |= {f"{name}.seed": str(rotation.seed) for name, rotation in rotations.items()}
    plan = [TensorPlan(name, torch.float64, tuple(r.matrix.shape)) for name, r in rotations.items()]
    aside = f".{path.name}.partial"
    writer = SafetensorsWriter(path.parent, plan, stem=aside, metadata=dict(sorted(metadata.items())))
    for name, rotation in rotations.items():
        writer.write(name, rotation.matrix)
    writer.sync()
    (path.parent / f"{aside}.safetensors").replace(path)


def load_rotations(path: Path) -> dict[str, Rotation]:
    """All rotations of a file. Raises InputError when it is damaged or holds something else."""
    entries, metadata = read_header(path), read_metadata(path)
    found = {}
    for name, entry in entries.items():
        seed = metadata.get(f"{name}.seed", "")
        if not seed.lstrip("-").isdigit() or f"{name}.kind" not in metadata:
            raise InputError(f"{path}: tensor {name}: says neither kind nor seed; not a file of rotations")
        found[name] = Rotation(read_tensor(entry), metadata[f"{name}.kind"], int(seed))
    return found
