"""Fusing gains and rotations into the weights, checkpoint to checkpoint, a few rows of one tensor at a time.

Which matrix multiplies which side of a weight follows from the spaces that the architecture declares. With rows as
vectors (`y = x W^T`): the columns of a weight live in the space it reads, the rows in the space it writes, so

    W' = T_writes^T  W diag(gain)  T_reads        b' = T_writes^T b

where T is R1 (residual), R2 of the layer, one block per head (v), the R4 Hadamard (mlp) or nothing. The
composition is computed in float64 from the stored tensor and cast once, to the stored dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Space
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.rotation.hadamard import hadamard_transform
from dfrot.rotation.online import HadamardSpec

CHUNK = 32 << 20  # bytes of float64 that one step computes


@dataclass(frozen=True)
class Rotations:
    """The rotations to fuse; None leaves a space as it is."""

    r1: Tensor | None = None
    """float64 [hidden, hidden], of the residual space."""
    r2: Tensor | None = None
    """float64 [layers, head_dim, head_dim], of every value head."""
    r4: HadamardSpec | None = None
    """The transform of down_proj's input, whose online half the runtime applies."""

    def check(self, arch: BoundArch) -> None:
        """Raise MismatchError for matrices of another model, UnsupportedError where the architecture refuses."""
        if self.r1 is not None and (reason := arch.spec.refuses(Space.RESIDUAL)):
            raise UnsupportedError(reason)
        shapes = {
            "R1": (self.r1, (arch.hidden, arch.hidden)),
            "R2": (self.r2, (arch.n_layers, arch.head_dim, arch.head_dim)),
        }
        for name, (matrix, shape) in shapes.items():
            if matrix is not None and tuple(matrix.shape) != shape:
                raise MismatchError(
                    f"rotation {name}: is {list(matrix.shape)}, this model needs {list(shape)}; it belongs to another"
                )
        if self.r4 is not None and self.r4.size != arch.intermediate:
            raise MismatchError(
                f"rotation R4: is {self.r4.size} wide, this model needs {arch.intermediate}; it belongs to another"
            )


@dataclass(frozen=True)
class _Job:
    """How one output tensor is computed from one stored tensor."""

    source: str  # name of the stored tensor
    layer: int = 0  # block, for R2
    reads: str = ""  # space of the columns
    writes: str = ""  # space of the rows
    parts: tuple[tuple[str, str], ...] = ()  # of a fused linear (qkv): spaces and sizes of its row blocks, in order
    gain: str = ""  # norm weight that is multiplied onto the columns
    offset: float = 0.0  # gain = stored + offset
    constant: float | None = None  # every element of the output


class Fuser:
    """Computes the tensors of the rotated checkpoint. Memory: one stored tensor plus a few CHUNKs."""

    def __init__(self, checkpoint: Checkpoint, arch: BoundArch, rotations: Rotations) -> None:
        """Raises MismatchError for rotations of another model, UnsupportedError where the architecture refuses."""
        rotations.check(arch)
        self.checkpoint, self.arch, self.rotations = checkpoint, arch, rotations
        self.jobs = self._jobs()

    @property
    def fuses_gains(self) -> bool:
        """Whether norm gains move into the linears and the head gets weights of its own: R1 needs both."""
        return self.rotations.r1 is not None

    def _jobs(self) -> dict[str, _Job]:
        """Output tensor name -> job, in the order in which the model computes."""
        spec, arch = self.arch.spec, self.arch
        jobs = {f"{spec.embed}.weight": _Job(f"{spec.embed}.weight", reads=Space.RESIDUAL)}
        for layer in range(arch.n_layers):
            gains = {}  # linear -> name and offset of the gain in front of it
            for norm in spec.norms:
                name = f"{arch.full(layer, norm.name)}.weight"
                jobs[name] = self._norm(name, norm.offset)
                gains.update(dict.fromkeys(norm.feeds, (name, norm.offset)))
            for name in (f"{arch.full(layer, norm)}.weight" for norm in spec.head_norms):
                jobs[name] = _Job(name)
            for linear in (*spec.routers, *spec.linears):
                name = arch.full(layer, linear.name)
                gain, offset = gains.get(linear.name, ("", 0.0))
                jobs[f"{name}.weight"] = _Job(
                    f"{name}.weight", layer, linear.reads, linear.writes, linear.parts, gain, offset
                )
                jobs[f"{name}.bias"] = _Job(f"{name}.bias", layer, writes=linear.writes, parts=linear.parts)
        final = f"{spec.final_norm.name}.weight"
        jobs[final] = self._norm(final, spec.final_norm.offset)
        head = f"{spec.head.name}.weight"
        source = f"{spec.embed}.weight" if arch.tied else head
        if self.fuses_gains or not arch.tied:
            jobs[head] = _Job(source, reads=Space.RESIDUAL, gain=final, offset=spec.final_norm.offset)
        jobs[f"{spec.head.name}.bias"] = _Job(f"{spec.head.name}.bias")
        for name in self.checkpoint.entries:
            if arch.wrapper is not None and arch.is_outside(name):
                jobs[name] = _Job(name, writes=Space.RESIDUAL if arch.wrapper.writes(name) else "")
        return {name: job for name, job in jobs.items() if job.source in self.checkpoint}

    def _norm(self, name: str, offset: float) -> _Job:
        """A norm's weight: ones (as stored) when its gain is fused, else unchanged."""
        return _Job(name, constant=1.0 - offset if self.fuses_gains else None)

    def plan(self) -> list[TensorPlan]:
        """Names, dtypes and shapes of the output: those of the input and, with R1, a head of its own."""
        entries = {name: self.checkpoint.entry(job.source) for name, job in self.jobs.items()}
        return [TensorPlan(name, entry.dtype, entry.shape) for name, entry in entries.items()]

    def units(self) -> dict[str, list[str]]:
        """Unit of work -> its tensors: each block is a unit, and so is each tensor outside the blocks."""
        prefixes = {self.arch.prefix(layer) + ".": self.arch.prefix(layer) for layer in range(self.arch.n_layers)}
        units: dict[str, list[str]] = {}
        for name in self.jobs:
            unit = next((unit for prefix, unit in prefixes.items() if name.startswith(prefix)), name)
            units.setdefault(unit, []).append(name)
        return units

    def write(self, name: str, writer: SafetensorsWriter) -> None:
        """Compute tensor `name` and store it. Raises InputError for a value that the stored dtype cannot hold."""
        for begin, rows in self.rows(name):
            writer.write_rows(name, begin, rows)

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The output tensor in row blocks (first row, rows [n, ...] in the stored dtype)."""
        job = self.jobs[name]
        entry = self.checkpoint.entry(job.source)
        if job.constant is not None:
            yield 0, torch.full(entry.shape, job.constant, dtype=entry.dtype)
            return
        columns = entry.shape[1] if len(entry.shape) > 1 else 1
        gain = self._gain(job)
        for begin, rows in self._rotated_rows(job, columns):
            if gain is not None:
                rows = rows * gain
            rows = self._rotate_columns(rows, job).to(entry.dtype)
            if not bool(torch.isfinite(rows).all()):
                raise InputError(
                    f"{entry.file}: tensor {job.source}: overflows {entry.dtype} once gains and rotations are fused; "
                    "convert the checkpoint to bfloat16 first",
                    file=entry.file,
                    tensor=job.source,
                )
            yield begin, rows.reshape(-1, *entry.shape[1:])

    def _gain(self, job: _Job) -> Tensor | None:
        """The gain to multiply onto the columns, float64 [columns], or None."""
        if not job.gain or not self.fuses_gains:
            return None
        return self.checkpoint.read(job.gain).to(torch.float64) + job.offset

    def _rotated_rows(self, job: _Job, columns: int) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of T_writes^T W: (first row, float64 [n, columns])."""
        total = self.checkpoint.shape(job.source)[0]
        step = max(1, CHUNK // (8 * columns))
        r1, r2 = self.rotations.r1, self.rotations.r2
        if job.writes == Space.RESIDUAL and r1 is not None:
            weight = self.checkpoint.read(job.source).reshape(total, columns)
            for begin in range(0, total, step):
                out = torch.zeros(min(step, total - begin), columns, dtype=torch.float64)
                for k in range(0, total, step):
                    out.addmm_(r1[k : k + step, begin : begin + step].T, weight[k : k + step].to(torch.float64))
                yield begin, out
            return
        parts = [(space, self.arch.sizes[rows]) for space, rows in job.parts] or [(job.writes, total)]
        first = 0
        for space, count in parts:
            yield from self._value_rows(job, columns, first, count, r2 if space == Space.VALUE else None, step)
            first += count

    def _value_rows(
        self, job: _Job, columns: int, first: int, count: int, r2: Tensor | None, step: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of rows first .. first + count; with R2, rotated head by head."""
        size = self.arch.head_dim
        if r2 is not None:
            step = max(1, step // size) * size  # whole heads only
        end = first + count
        for begin in range(first, end, step):
            rows = self.checkpoint.read_rows(job.source, begin, min(begin + step, end))
            rows = rows.reshape(-1, columns).to(torch.float64)
            if r2 is not None:
                rows = torch.matmul(r2[job.layer].T, rows.reshape(-1, size, columns)).reshape(-1, columns)
            yield begin, rows

    def _rotate_columns(self, rows: Tensor, job: _Job) -> Tensor:
        """Rows float64 [n, columns] times T_reads."""
        r1, r2, r4 = self.rotations.r1, self.rotations.r2, self.rotations.r4
        if job.reads == Space.RESIDUAL and r1 is not None:
            return rows @ r1
        if job.reads == Space.VALUE and r2 is not None:
            heads = rows.reshape(len(rows), -1, self.arch.head_dim)
            return (heads @ r2[job.layer]).reshape(rows.shape)
        if job.reads == Space.MLP and r4 is not None:
            return hadamard_transform(rows, r4)
        return rows
