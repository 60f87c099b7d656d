"""Checkpoints read under the names of their architecture's description, whatever their files call a tensor.

The language model of a VLM lies under a prefix, which differs between published files and transformers.

Mixtures are published with one linear per expert, and transformers writes them so unless `save_original_format=False`
is given: then a layer has two tensors, [experts, rows, cols], as in its memory. An expert's rows are contiguous bytes
of such a tensor, so reading them takes only names and offsets; no weight is read or copied here.
"""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.bound import BoundArch
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError


def with_described_names(checkpoint: Checkpoint, arch: BoundArch) -> Checkpoint:
    """`checkpoint` under the names of its architecture's description. Raises InputError for a merged tensor of another
    shape, or for one linear that is stored twice."""
    mixture = arch.spec.experts
    if mixture is None and arch.wrapper is None:
        return checkpoint
    parts = dict(mixture.merged) if mixture is not None else {}
    merged = {arch.full(layer, name): layer for layer in range(arch.n_layers) for name in parts}
    described: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.entries.items():
        if name in merged:
            layer = merged[name]
            entries = _split(arch, entry, layer, parts[name.removeprefix(f"{arch.prefix(layer)}.")])
        else:
            entries = {arch.stored(name): entry}
        if repeated := set(entries) & set(described):
            raise InputError(
                f"{entry.file}: tensor {min(repeated)} is stored twice; restore the folder",
                file=entry.file,
                tensor=min(repeated),
            )
        described.update(entries)
    return checkpoint.renamed(described)


def _split(arch: BoundArch, entry: TensorEntry, layer: int, parts: tuple[str, ...]) -> dict[str, TensorEntry]:
    """The entries of the linears whose weights a merged tensor holds, one [rows, cols] per expert and part."""
    mixture = arch.spec.experts
    assert mixture is not None
    shapes = {linear.name: arch.shape(linear) for linear in mixture.linears}
    expected = (arch.n_experts, sum(shapes[part][0] for part in parts), shapes[parts[0]][1])
    if entry.shape != expected:
        raise InputError(
            f"{entry.file}: tensor {entry.name}: shape {list(entry.shape)}, config.json needs {list(expected)}",
            file=entry.file,
            tensor=entry.name,
        )
    entries, position = {}, entry.start
    for expert in range(arch.n_experts):
        for part in parts:
            rows, cols = shapes[part]
            end = position + rows * cols * entry.dtype.itemsize
            name = f"{arch.full(layer, mixture.container)}.{expert}.{part}.weight"
            entries[name] = replace(entry, name=name, shape=(rows, cols), start=position, end=end)
            position = end
    return entries
