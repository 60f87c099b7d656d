"""Fusing gains, rotations and transforms into the weights, checkpoint to checkpoint, a few rows of a tensor at a time.

Which matrix multiplies which side of a weight follows from the spaces that the architecture declares. With rows as
vectors (`y = x W^T`): the columns of a weight live in the space it reads, the rows in the space it writes, so

    W' = T_writes^T  W diag(gain)  T_reads        b' = T_writes^T b

where T is R1 (residual), R2 of the layer, one block per head (v), the R4 Hadamard (mlp) or nothing. Transforms
(`dfrot.rotation.transforms`) come before the rotations; those that are not orthogonal enter inverted on the side that
reads. The composition is computed in float64 from the stored tensor and cast once, to the stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Space
from dfrot.arch.space import Size
from dfrot.arch.spec import Linear, Part
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.matrix_stacks import inverses
from dfrot.rotation.hadamard import hadamard_transform
from dfrot.rotation.online import HadamardSpec
from dfrot.rotation.transforms import Transforms, head_norm_factor, per_query_head

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
    layer: int = 0  # block, for R2 and transforms
    reads: str = ""  # space of the columns
    writes: str = ""  # space of the rows
    linear: Linear | None = None  # whose weight or bias it is, for what acts on parts of its rows
    gain: str = ""  # norm weight that is multiplied onto the columns where gains are fused
    offset: float = 0.0  # gain = stored + offset
    constant: float | None = None  # every element of the output
    factor: Tensor | None = None  # float64, multiplied onto gains
    bias: Callable[[], Tensor] | None = None  # makes the float64 vector that stands in for the stored one
    norm: int | None = None  # which norm of the block feeds it
    gains: Tensor | None = None  # float64, of a norm, as stored: in the basis of R1
    rows: int | None = None  # of a bias that the source, a weight, does not have yet


class Fuser:
    """Computes the tensors of the rotated checkpoint. Memory: one stored tensor plus a few CHUNKs."""

    def __init__(
        self, checkpoint: Checkpoint, arch: BoundArch, rotations: Rotations, transforms: Transforms | None = None
    ) -> None:
        """Raises MismatchError for rotations or transforms of another model, UnsupportedError where the architecture
        refuses."""
        self.transforms = transforms or Transforms()
        rotations.check(arch)
        self.transforms.check(arch)
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
            jobs |= self._block_jobs(layer)
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

    def _block_jobs(self, layer: int) -> dict[str, _Job]:
        """The jobs of one block."""
        spec, arch = self.arch.spec, self.arch
        jobs: dict[str, _Job] = {}
        gains = {}  # linear -> name and offset of the gain in front of it, and the number of its norm
        for number, norm in enumerate(spec.norms):
            name = f"{arch.full(layer, norm.name)}.weight"
            jobs[name] = self._norm(name, norm.offset)
            if self.transforms.norm is not None:
                jobs[name] = replace(jobs[name], gains=self.transforms.norm[layer, number] - norm.offset)
            gains.update(dict.fromkeys(norm.feeds, (name, norm.offset, number)))
        for number, norm_name in enumerate(spec.head_norms):
            name = f"{arch.full(layer, norm_name)}.weight"
            jobs[name] = _Job(name, factor=self._head_norm_factor(layer, number), offset=spec.final_norm.offset)
        for linear in (*spec.routers, *spec.linears):
            name = arch.full(layer, linear.name)
            gain, offset, fed_by = gains.get(linear.name, ("", 0.0, None))
            jobs[f"{name}.weight"] = _Job(
                f"{name}.weight", layer, linear.reads, linear.writes, linear, gain=gain, offset=offset, norm=fed_by
            )
            jobs[f"{name}.bias"] = self._bias(layer, linear, name)
        return jobs

    def _head_norm_factor(self, layer: int, number: int) -> Tensor | None:
        """What multiplies the gain of a q or k norm, or None."""
        key = self.transforms.key
        return None if key is None else head_norm_factor(self.arch, number, key[layer])

    def _bias(self, layer: int, linear: Linear, name: str) -> _Job:
        """The job of a linear's bias, which a shift of the values may create."""
        shift, stored = self.transforms.value_shift, f"{name}.bias"
        job = _Job(stored, layer, writes=linear.writes, linear=linear)
        if shift is None or self.arch.spec.bias_switch(linear.name) != self.arch.spec.attention_bias_key:
            return job
        if stored not in self.checkpoint:
            job = replace(job, source=f"{name}.weight", rows=self.arch.shape(linear)[0])
        return replace(job, bias=lambda: self._shifted_bias(layer, linear, name, shift[layer]))

    def _shifted_bias(self, layer: int, linear: Linear, name: str, shift: Tensor) -> Tensor:
        """The bias float64 [rows] of a linear of attention, once values are `shift` [kv heads, D] smaller."""
        stored = f"{name}.bias"
        bias = torch.zeros(self.arch.shape(linear)[0], dtype=torch.float64)
        if stored in self.checkpoint:
            bias += self.checkpoint.read(stored).to(torch.float64)
        if linear.writes == Space.VALUE:
            bias -= shift.flatten()
        elif linear.reads == Space.VALUE:
            weight = self.checkpoint.read(f"{name}.weight").to(torch.float64)
            bias += weight @ per_query_head(self.arch, shift).flatten()
        return bias

    def _norm(self, name: str, offset: float) -> _Job:
        """A norm's weight: ones (as stored) when its gain is fused, else unchanged."""
        return _Job(name, constant=1.0 - offset if self.fuses_gains else None)

    def _entry(self, job: _Job) -> TensorEntry:
        """The stored tensor, with the shape of the result."""
        entry = self.checkpoint.entry(job.source)
        return entry if job.rows is None else replace(entry, shape=(job.rows,))

    def plan(self) -> list[TensorPlan]:
        """Names, dtypes and shapes of the output: those of the input, with R1 a head of its own, and biases that a
        shift of the values needs."""
        entries = {name: self._entry(job) for name, job in self.jobs.items()}
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
        entry = self._entry(job)
        if job.constant is not None and job.gains is None:
            yield 0, torch.full(entry.shape, job.constant, dtype=entry.dtype)
            return
        if job.gains is not None:
            yield 0, self._cast(job.gains, entry, job)
            return
        if job.factor is not None:
            own = self.checkpoint.read(job.source).to(torch.float64) + job.offset
            yield 0, self._cast(own * job.factor - job.offset, entry, job)
            return
        columns = entry.shape[1] if len(entry.shape) > 1 else 1
        gain = self._gain(job)
        for begin, rows in self._rotated_rows(job, entry.shape[0], columns):
            if gain is not None:
                rows = rows * gain
            yield begin, self._cast(self._rotate_columns(rows, job), entry, job).reshape(-1, *entry.shape[1:])

    def _cast(self, rows: Tensor, entry: TensorEntry, job: _Job) -> Tensor:
        """float64 rows in the stored dtype. Raises InputError where it cannot hold them."""
        rows = rows.to(entry.dtype)
        if not bool(torch.isfinite(rows).all()):
            raise InputError(
                f"{entry.file}: tensor {job.source}: overflows {entry.dtype} once gains and rotations are fused; "
                "convert the checkpoint to bfloat16 first",
                file=entry.file,
                tensor=job.source,
            )
        return rows

    def _gain(self, job: _Job) -> Tensor | None:
        """The gain to multiply onto the columns, float64 [columns], or None: R1 needs that of every norm, a norm that
        gets another gain its own."""
        replaced = job.norm is not None and self.transforms.norm is not None
        if not job.gain or not (self.fuses_gains or replaced):
            return None
        return self.checkpoint.read(job.gain).to(torch.float64) + job.offset

    def _rotated_rows(self, job: _Job, total: int, columns: int) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of T_writes^T W: (first row, float64 [n, columns])."""
        step = max(1, CHUNK // (8 * columns))
        r1 = self.rotations.r1
        if job.writes == Space.RESIDUAL and r1 is not None:
            weight = (job.bias() if job.bias is not None else self.checkpoint.read(job.source)).reshape(total, columns)
            for begin in range(0, total, step):
                out = torch.zeros(min(step, total - begin), columns, dtype=torch.float64)
                for k in range(0, total, step):
                    out.addmm_(r1[k : k + step, begin : begin + step].T, weight[k : k + step].to(torch.float64))
                yield begin, out
            return
        first = 0
        for part in self._parts(job):
            count = total if part is None else self.arch.sizes[part.rows]
            yield from self._part_rows(job, columns, range(first, first + count), part, step)
            first += count

    def _parts(self, job: _Job) -> tuple[Part, ...] | tuple[None]:
        """What writes the rows of a tensor, block by block; None: no linear of a block does."""
        linear = job.linear
        if linear is None:
            return (None,)
        return linear.parts or (Part(linear.writes, linear.rows, linear.activated),)

    def _part_rows(
        self, job: _Job, columns: int, span: range, part: Part | None, step: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of the rows `span`; those of values are transformed head by head."""
        size = self.arch.head_dim
        matrices = self._value_matrices(job.layer, inverse=False) if part and part.space == Space.VALUE else None
        factor = self._row_factor(job, part) if part is not None else None
        if matrices is not None:
            step = max(1, step // size) * size  # whole heads only
        stored = job.bias() if job.bias is not None else None
        for begin in range(span.start, span.stop, step):
            end = min(begin + step, span.stop)
            rows = stored[begin:end] if stored is not None else self.checkpoint.read_rows(job.source, begin, end)
            rows = rows.reshape(-1, columns).to(torch.float64)
            here = slice(begin - span.start, end - span.start)
            if factor is not None:
                rows = rows * factor[here, None]
            if matrices is not None:
                heads = matrices if matrices.ndim == 2 else matrices[here.start // size : here.stop // size]
                rows = torch.matmul(heads.mT, rows.reshape(-1, size, columns)).reshape(-1, columns)
            yield begin, rows

    def _row_factor(self, job: _Job, part: Part) -> Tensor | None:
        """Factors float64 [rows] of a part's rows, or None."""
        up, key = self.transforms.up, self.transforms.key
        if part.space == Space.MLP and up is not None and not part.activated:
            return up[job.layer, self._expert(job)]
        if part.space == Space.QUERY_KEY and key is not None and not self.arch.spec.head_norms:
            factors = key[job.layer]
            return (per_query_head(self.arch, 1 / factors) if part.rows == Size.QUERIES else factors).flatten()
        return None

    def _expert(self, job: _Job) -> int:
        return (job.linear.expert or 0) if job.linear is not None else 0

    def _value_matrices(self, layer: int, inverse: bool) -> Tensor | None:
        """T R2 of every kv head (inverse: T^-T R2 of every query head), float64 [heads, D, D]; R2 [D, D] alone where it
        acts alone; None: values stay."""
        value = None if self.transforms.value is None else self.transforms.value[layer]
        r2 = None if self.rotations.r2 is None else self.rotations.r2[layer]
        if value is None:
            return r2
        matrices = per_query_head(self.arch, inverses(value).mT) if inverse else value
        return matrices if r2 is None else matrices @ r2

    def _rotate_columns(self, rows: Tensor, job: _Job) -> Tensor:
        """Rows float64 [n, columns] times T_reads, or the transposed inverse of a map that is not orthogonal."""
        r1, r4 = self.rotations.r1, self.rotations.r4
        if job.reads == Space.RESIDUAL:
            rows = rows if r1 is None else rows @ r1
            norm = self.transforms.norm
            return rows if norm is None or job.norm is None else rows / norm[job.layer, job.norm]
        if job.reads == Space.VALUE and (matrices := self._value_matrices(job.layer, inverse=True)) is not None:
            heads = rows.reshape(len(rows), -1, self.arch.head_dim)
            if matrices.ndim == 2:
                return (heads @ matrices).reshape(rows.shape)
            return torch.einsum("nhd,hde->nhe", heads, matrices).reshape(rows.shape)
        if job.reads == Space.MLP:
            if self.transforms.up is not None:
                rows = rows / self.transforms.up[job.layer, self._expert(job)]
            return rows if r4 is None else hadamard_transform(rows, r4)
        return rows
