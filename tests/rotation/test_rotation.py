from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfrot.errors import InputError, MismatchError
from dfrot.rotation.hadamard import random_orthogonal, randomized_hadamard
from dfrot.rotation.rotation import Rotation, load_rotations, save_rotations


def test_save_and_load_keep_every_bit(tmp_path: Path) -> None:
    r1 = Rotation(randomized_hadamard(96, 7), "hadamard", 7)
    r2 = Rotation(torch.stack([randomized_hadamard(8, (7, n)) for n in range(3)]), "hadamard", 7)
    save_rotations(tmp_path / "rotation.safetensors", {"R1": r1, "R2": r2})
    assert [path.name for path in tmp_path.iterdir()] == ["rotation.safetensors"]
    found = load_rotations(tmp_path / "rotation.safetensors")
    assert torch.equal(found["R1"].matrix, r1.matrix)
    assert torch.equal(found["R2"].matrix, r2.matrix)
    assert (found["R1"].kind, found["R1"].seed) == ("hadamard", 7)
    assert Rotation.load(tmp_path / "rotation.safetensors", "R2").orthogonality_error() < 1e-14
    with pytest.raises(MismatchError, match="holds no rotation R5"):
        Rotation.load(tmp_path / "rotation.safetensors", "R5")


def test_orthogonality_error_is_the_largest_entry() -> None:
    matrix = random_orthogonal(40, 0)
    assert Rotation(matrix, "orthogonal", 0).require_orthogonal() < 1e-14
    matrix = matrix.clone()
    matrix[3, 5] += 1e-9
    expected = (matrix.T @ matrix - torch.eye(40, dtype=torch.float64)).abs().max()
    damaged = Rotation(matrix, "orthogonal", 0)
    assert damaged.orthogonality_error() == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(InputError, match=r"\|R\^T R - I\| is"):
        damaged.require_orthogonal()


def test_one_bad_layer_is_seen() -> None:
    stack = torch.stack([random_orthogonal(8, n) for n in range(3)])
    stack[1] *= 1.001
    assert Rotation(stack, "orthogonal", 0).orthogonality_error() > 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_orthogonal(bad: float) -> None:
    matrix = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    matrix[1, 0, 0] = bad
    with pytest.raises(InputError, match="orthogonalise"):
        Rotation(matrix, "hadamard", 0).require_orthogonal()


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 3, 4)])
def test_shapes_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="not square float64"):
        Rotation(torch.zeros(shape, dtype=torch.float64), "hadamard", 0)


def test_float32_is_refused() -> None:
    with pytest.raises(InputError, match="not square float64"):
        Rotation(torch.eye(4), "hadamard", 0)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.eye(4, dtype=torch.float64)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a file of rotations"):
        load_rotations(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="truncated"):
        load_rotations(tmp_path / "cut.safetensors")
