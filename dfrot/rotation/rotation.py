"""Rotation matrices R1 and R2 with their kind and seed: checked, saved and loaded."""

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
    """An orthogonal matrix, or one per layer, and where it comes from. Raises InputError unless square float64."""

    matrix: Tensor
    """float64 [d, d], acting on rows (`x -> x R`); or [n, d, d] for one matrix per layer."""
    kind: str
    """How it was made: dfrot, hadamard or orthogonal."""
    seed: int
    """Seed that it was drawn from."""

    def __post_init__(self) -> None:
        shape = tuple(self.matrix.shape)
        if self.matrix.dtype != torch.float64 or len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            raise InputError(f"rotation {self.kind}: {self.matrix.dtype} {list(shape)} is not square float64")

    @property
    def size(self) -> int:
        """Width d of the space that is rotated."""
        return self.matrix.shape[-1]

    def orthogonality_error(self) -> float:
        """|R^T R - I|_max in float64 (the worst of all layers); NaN when the matrix holds one."""
        errors = [_orthogonality_error(matrix) for matrix in self.matrix.reshape(-1, self.size, self.size)]
        return float(torch.stack(errors).max()) if errors else 0.0  # unlike Python's, this max passes NaN on

    def require_orthogonal(self) -> float:
        """The orthogonality error; raises InputError when fusing this matrix would change the model."""
        error = self.orthogonality_error()
        if not error < TOLERANCE:  # NaN is refused too
            raise InputError(
                f"rotation {self.kind}: |R^T R - I| is {error:.2g}, fusing needs less than {TOLERANCE:g}; "
                "orthogonalise it, or make it again",
                limit=TOLERANCE,
            )
        return error

    def save(self, path: Path, name: str = "R1") -> None:
        """Write a file that holds this rotation alone."""
        save_rotations(path, {name: self})

    @classmethod
    def load(cls, path: Path, name: str = "R1") -> Rotation:
        """The rotation stored under `name`; kind and seed come from the file's metadata.

        Raises MismatchError when the file holds no rotation of that name, InputError when it is damaged."""
        rotations = load_rotations(path)
        if name not in rotations:
            raise MismatchError(
                f"{path}: holds no rotation {name} (found: {', '.join(rotations) or 'none'})", file=path, tensor=name
            )
        return rotations[name]


def _orthogonality_error(matrix: Tensor) -> Tensor:
    """|R^T R - I|_max of float64 R [d, d], a scalar; ROWS rows of the product at a time."""
    size = matrix.shape[0]
    largest = torch.zeros((), dtype=torch.float64)
    for begin in range(0, size, ROWS):
        gram = matrix[:, begin : begin + ROWS].T @ matrix
        gram.diagonal(begin).sub_(1.0)
        largest = torch.maximum(largest, gram.abs_().max())
    return largest


def save_rotations(path: Path, rotations: dict[str, Rotation]) -> None:
    """Write rotations to one safetensors file, atomically: to a temporary name, synced, then renamed."""
    metadata = {f"{name}.kind": rotation.kind for name, rotation in rotations.items()}
    metadata |= {f"{name}.seed": str(rotation.seed) for name, rotation in rotations.items()}
    plan = [TensorPlan(name, torch.float64, tuple(rotation.matrix.shape)) for name, rotation in rotations.items()]
    temporary = f".{path.name}.partial"
    writer = SafetensorsWriter(path.parent, plan, stem=temporary, metadata=dict(sorted(metadata.items())))
    for name, rotation in rotations.items():
        writer.write(name, rotation.matrix)
    writer.sync()
    (path.parent / f"{temporary}.safetensors").replace(path)


def load_rotations(path: Path) -> dict[str, Rotation]:
    """All rotations of a file, by name. Raises InputError when it is damaged or holds something else."""
    entries, metadata = read_header(path), read_metadata(path)
    rotations = {}
    for name, entry in entries.items():
        seed = metadata.get(f"{name}.seed", "")
        if not seed.lstrip("-").isdigit() or f"{name}.kind" not in metadata:
            raise InputError(
                f"{path}: tensor {name}: says neither kind nor seed; not a file of rotations", file=path, tensor=name
            )
        rotations[name] = Rotation(read_tensor(entry), metadata[f"{name}.kind"], int(seed))
    return rotations
