"""Checkpoints read under the names of their architecture's description, whatever their files call a tensor.

Of a model that sees, the language model lies under a prefix, which differs between makers and transformers.

The makers of mixtures publish one linear per expert, and transformers writes that too unless it is told
`save_original_format=False`: then a layer has two tensors, [experts, rows, cols], as in its memory. An expert's rows
are contiguous bytes of such a tensor, so this is a matter of names and offsets: no weight is read or copied.
"""

from __future__ import annotations

from dataclasses import replace

from dfrot.arch.spec import BoundArch
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError


def with_described_names(checkpoint: Checkpoint, arch: BoundArch) -> Checkpoint:
    """`checkpoint` with the names of its architecture's description. Raises InputError for a merged tensor of another
    shape, or for one linear that is stored twice."""
    mixture = arch.spec.experts
    if mixture is None and arch.wrapper is None:
        return checkpoint
    parts = dict(mixture.merged) if mixture is not None else {}
    merged = {arch.full(layer, name): layer for layer in range(arch.n_layers) for name in parts}
    found: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.entries.items():
        if name in merged:
            layer = merged[name]
            fresh = _split(arch, entry, layer, parts[name.removeprefix(f"{arch.prefix(layer)}.")])
        else:
            fresh = {arch.stored(name): entry}
        if twice := set(fresh) & set(found):
            raise InputError(f"{entry.file}: tensor {min(twice)} is stored twice; restore the folder")
        found.update(fresh)
    return checkpoint.renamed(found)


def _split(arch: BoundArch, entry: TensorEntry, layer: int, parts: tuple[str, ...]) -> dict[str, TensorEntry]:
    """The entries of the linears whose weights a merged tensor holds."""
    mixture = arch.spec.experts
    assert mixture is not None
    shapes = {one.name: arch.shape(one) for one in mixture.linears}
    count = arch.sizes["experts"]
    wanted = (count, sum(shapes[part][0] for part in parts), shapes[parts[0]][1])
    if entry.shape != wanted:
        raise InputError(
            f"{entry.file}: tensor {entry.name}: shape {list(entry.shape)}, config.json needs {list(wanted)}"
        )
    found, position = {}, entry.start
    for expert in range(count):
        for part in parts:
            rows, cols = shapes[part]
            end = position + rows * cols * entry.dtype.itemsize
            name = f"{arch.full(layer, mixture.container)}.{expert}.{part}.weight"
            found[name] = replace(entry, name=name, shape=(rows, cols), start=position, end=end)
            position = end
    return found
