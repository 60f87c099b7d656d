"""A quantized checkpoint as a reader of 16-bit checkpoints sees it: weights are dequantized when they are read.

A format describes every tensor of the model as a `DenseTensor`, which knows how to compute some of its rows. The view
lays these tensors out one behind the other, as the 16-bit file would hold them: the offsets of its entries are those of
that file, which nobody writes. So parts of a tensor (an expert of a merged mixture) are found by their offsets, as in
an ordinary checkpoint.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError
from dfrot.files import digest_bytes

CHUNK = 1 << 22  # values that are dequantized at a time: bounds the float32 temporaries


@dataclass(frozen=True)
class DenseTensor:
    """A tensor of the model, computed from what is stored."""

    name: str
    """Its name in a 16-bit checkpoint."""
    dtype: torch.dtype
    """The dtype in which it is read."""
    shape: tuple[int, ...]
    """Its shape."""
    file: Path
    """The file that holds its codes."""
    rows: Callable[[int, int], Tensor]
    """Computes rows begin .. end of the first dimension, in `dtype` or, to be cast once, in float32."""
    whole: bool = False
    """Whether some rows cost as much as all, because codes are packed across them: `rows` then returns its result in
    `dtype` and bounds its temporaries itself (`assembled`)."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data in `dtype`."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The whole tensor."""
        if not self.shape or self.whole:
            return self._cast(self.rows(0, self.shape[0] if self.shape else 1))
        return assembled(self.shape, self.dtype, lambda begin, end: self._cast(self.rows(begin, end)))

    def read_rows(self, begin: int, end: int) -> Tensor:
        """Rows begin .. end of the first dimension."""
        end = min(end, self.shape[0])
        if begin >= end:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return self._cast(self.rows(begin, end))

    def _cast(self, values: Tensor) -> Tensor:
        """In `dtype`. Raises InputError for a value that it cannot hold."""
        cast = values.to(self.dtype)
        comparable = cast.float() if cast.dtype.itemsize == 1 else cast  # FP8 has no arithmetic of its own
        if cast.numel() and not bool(torch.isfinite(comparable.abs().max())):
            raise InputError(
                f"{self.file}: tensor {self.name}: holds NaN or Inf once it is dequantized to {self.dtype}; the "
                "weights are damaged, or need bf16",
                file=self.file,
                tensor=self.name,
            )
        return cast


def assembled(shape: tuple[int, ...], dtype: torch.dtype, rows: Callable[[int, int], Tensor]) -> Tensor:
    """A tensor from its rows (first dimension), which are computed CHUNK values at a time."""
    values = torch.empty(shape, dtype=dtype)
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for begin in range(0, shape[0], step):
        end = min(begin + step, shape[0])
        values[begin:end] = rows(begin, end)
    return values


class DequantizedCheckpoint(Checkpoint):
    """A quantized checkpoint with the interface of a 16-bit one. Memory: what the caller holds, one chunk in float32,
    and the last tensor that was read in parts and can only be dequantized as a whole.

    Attributes beside those of Checkpoint:
        format: the stored format, in words.
        dtype: of the dequantized weights.
        dropped: what the checkpoint states and the view leaves out (activation scales), in words.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: Sequence[DenseTensor],
        identity: Callable[[], str],
        format: str,
        dtype: torch.dtype,
        dropped: Sequence[str] = (),
    ) -> None:
        """path: folder of the tokenizer; config: of the 16-bit model; identity: digest of what is stored; dtype: of the
        dequantized weights."""
        entries: dict[str, TensorEntry] = {}
        position = 0
        for tensor in tensors:
            if tensor.name in entries:
                raise InputError(
                    f"{tensor.file}: tensor {tensor.name} is stored twice, quantized and not; restore the folder",
                    file=tensor.file,
                    tensor=tensor.name,
                )
            end = position + tensor.nbytes
            entries[tensor.name] = TensorEntry(tensor.name, tensor.file, tensor.dtype, tensor.shape, position, end)
            position = end
        super().__init__(path, config, entries)
        self.format, self.dtype, self.dropped = format, dtype, tuple(dropped)
        self._identity = identity
        self._tensors = [tensor for tensor in tensors if tensor.nbytes]
        self._starts = [entries[tensor.name].start for tensor in self._tensors]
        self._last: tuple[int, Tensor] | None = None
        self._lock = threading.Lock()

    def read(self, name: str) -> Tensor:
        """The whole tensor, dequantized, checked for NaN and Inf."""
        entry = self.entry(name)
        if entry.end == entry.start:
            return torch.empty(entry.shape, dtype=entry.dtype)
        number = self._number(entry)
        tensor = self._tensors[number]
        if (entry.start, entry.end) == (self._starts[number], self._starts[number] + tensor.nbytes):
            return tensor.read().reshape(entry.shape)
        return self._part(number, entry.start, entry.end).reshape(entry.shape)

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin:end` (of the first dimension) of tensor `name`, dequantized, checked for NaN and Inf."""
        entry = self.entry(name)
        if entry.end == entry.start:
            return torch.empty(entry.shape, dtype=entry.dtype)[begin:end]
        number, end = self._number(entry), min(end, entry.shape[0])
        tensor = self._tensors[number]
        if not tensor.whole and entry.start == self._starts[number] and entry.shape == tensor.shape:
            return tensor.read_rows(begin, end)
        row = (entry.end - entry.start) // entry.shape[0]
        return self._part(number, entry.start + begin * row, entry.start + end * row).reshape(-1, *entry.shape[1:])

    def digest(self) -> str:
        """Identity of the weights: of what is stored, and of the dtypes in which it is read."""
        dtypes = sorted({str(tensor.dtype) for tensor in self._tensors})
        return digest_bytes(b"dequantized", self._identity().encode(), *(dtype.encode() for dtype in dtypes))

    def _number(self, entry: TensorEntry) -> int:
        """The tensor that holds the bytes of an entry."""
        return bisect.bisect_right(self._starts, entry.start) - 1

    def _part(self, number: int, start: int, end: int) -> Tensor:
        """Bytes start .. end of the layout, one-dimensional, all of tensor `number`."""
        size, first = self._tensors[number].dtype.itemsize, self._starts[number]
        with self._lock:
            if self._last is None or self._last[0] != number:
                self._last = None  # the previous one goes before the next is made
                self._last = number, self._tensors[number].read().flatten()
            return self._last[1][(start - first) // size : (end - first) // size].clone()


def stored_tensor(checkpoint: Checkpoint, name: str, dtype: torch.dtype | None = None) -> DenseTensor:
    """A tensor that is read as it is stored, or cast to `dtype`."""
    entry = checkpoint.entry(name)

    def rows(begin: int, end: int) -> Tensor:
        return checkpoint.read_rows(name, begin, end) if entry.shape else checkpoint.read(name)

    return DenseTensor(name, dtype or entry.dtype, entry.shape, entry.file, rows)
