"""A calibration on disk: the token batch and the statistics of every tap.

Folder: `tokens.safetensors` (int64 [samples, seqlen]), `layer-NNNNN.safetensors` per block and `head.safetensors`
with the tensors of `CalibStats` under `TAP.NAME`, and `stage.json` with the digests of model and dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.calib.stats import CalibStats
from dfrot.checkpoint import Checkpoint, read_header
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError
from dfrot.files import digest_bytes, digest_json
from dfrot.stage_folder import read_record

HEAD = "head"
TOKENS_FILE = "tokens.safetensors"


def save_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `stem`.safetensors, one durable file."""
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(folder, plan, stem, shard_bytes=1 << 62)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.sync()


def save_stats(folder: Path, stem: str, stats: Mapping[str, CalibStats]) -> None:
    """Write the statistics, by tap name, of one block or of the head."""
    tensors = {f"{tap}.{name}": tensor for tap, value in stats.items() for name, tensor in value.tensors().items()}
    save_tensors(folder, stem, tensors)


def block_stem(layer: int) -> str:
    """Name, without suffix, of the file for block `layer`."""
    return f"layer-{layer:05d}"


def file_stems(arch: BoundArch) -> list[str]:
    """Names, without suffix, of all statistics files: one per block, then the head."""
    return [*(block_stem(layer) for layer in range(arch.n_layers)), HEAD]


def tap_widths(arch: BoundArch, stem: str) -> dict[str, int]:
    """Tap name -> width K, for the taps that file `stem` holds."""
    if stem == HEAD:
        return {arch.spec.head.name: arch.hidden}
    return {tap.name: arch.sizes[tap.linears[0].cols] for tap in arch.taps()}


def load_stats(folder: Path, stem: str, arch: BoundArch, hessians: bool = True) -> dict[str, CalibStats]:
    """The statistics in file `stem` by tap name, checked against the architecture.

    hessians: False leaves these, which are large, unread. Raises InputError for a damaged file."""
    file = folder / f"{stem}.safetensors"
    reader = Checkpoint(folder, {}, read_header(file))
    stats: dict[str, CalibStats] = {}
    for tap, width in tap_widths(arch, stem).items():
        names = [name for name in reader.entries if name.startswith(f"{tap}.")]
        if not hessians:
            names = [name for name in names if name != f"{tap}.hessian"]
        tensors = {name.removeprefix(f"{tap}."): reader.read(name).clone() for name in names}
        stats[tap] = CalibStats.from_tensors(tensors, width, f"{file}: tap {tap}")
    return stats


def tokens_digest(tokens: Tensor) -> str:
    """Identity of a token batch int64 [samples, seqlen]."""
    shape = f"{tuple(tokens.shape)}".encode()
    return digest_bytes(shape, tokens.contiguous().view(torch.uint8).numpy().tobytes())


class Calibration:
    """A published calibration, opened and checked as a whole, read block by block."""

    def __init__(self, path: Path, record: dict[str, Any], arch: BoundArch) -> None:
        """record: its `stage.json`. Use `open`, which checks."""
        self.path, self.record, self.arch = path, record, arch

    @classmethod
    def open(cls, path: Path, arch: BoundArch, model_digest: str) -> Calibration:
        """Raises InputError for a damaged folder, MismatchError for the calibration of another checkpoint."""
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give the result of dfq calibrate", file=path)
        record = read_record(path, "calibrate")
        if not isinstance(record.get("request"), dict) or record["request"].get("model") != model_digest:
            raise MismatchError(
                f"{path}: was made on another checkpoint; run dfq calibrate on the one that is to be quantized",
                file=path,
            )
        calibration = cls(path, record, arch)
        for stem in file_stems(arch) if calibration.has_statistics else ():
            read_header(path / f"{stem}.safetensors")
        if tokens_digest(calibration.tokens()) != record["request"].get("tokens"):
            file = path / TOKENS_FILE
            raise InputError(f"{file}: does not match stage.json; run dfq calibrate again", file=file)
        return calibration

    @property
    def digest(self) -> str:
        """Identity of the calibration: of its record, which holds the digests of model and tokens."""
        return digest_json(self.record)

    @property
    def has_statistics(self) -> bool:
        """False for a calibration that keeps its tokens alone (`statistics=False`)."""
        return bool(self.record["request"].get("settings", {}).get("statistics", True))

    def tokens(self) -> Tensor:
        """int64 [samples, seqlen]. Raises InputError when the file holds something else."""
        file = self.path / TOKENS_FILE
        tokens = Checkpoint(self.path, {}, read_header(file)).read("tokens")
        if tokens.dim() != 2 or tokens.dtype != torch.long or tokens.numel() == 0:
            raise InputError(f"{file}: not a token batch; run dfq calibrate again", file=file)
        return tokens

    def stats(self, stem: str, hessians: bool = True) -> dict[str, CalibStats]:
        """Statistics by tap name; `stem` is `block_stem(layer)` or HEAD. Raises InputError where there are none."""
        if not self.has_statistics:
            raise InputError(
                f"{self.path}: holds tokens only; calibrate with statistics, or propagate errors", file=self.path
            )
        return load_stats(self.path, stem, self.arch, hessians)
