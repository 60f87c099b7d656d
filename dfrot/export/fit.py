"""Whether a target can hold a scheme, why not, and the nearest scheme that it can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.export.targets import TARGETS, ExportTarget, Storage
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.quant.table import TableScheme

# Rows of the matrix of formats: common schemes, and one of each kind that some target refuses.
SCHEMES = (
    "w16a16",
    "w4a16-g32",
    "w4a16-g64",
    "w4a16-g128",
    "w4a16",
    "w4a16-g32-wasym",
    "w4a16-g128-wasym",
    "w8a16-g32",
    "w8a16",
    "w5a16-g32",
    "w3a16-g128",
    "w4a16-g16",
    "w4a8-g32-sym",
    "w4a8-sym",
    "w4a8",
    "w8a8-sym",
    "w4a4-g32-sym",
    "w4a4-sym",
    "w4a4",
    "w4a4kv4",
    "nvfp4a16",
    "nvfp4",
    "mxfp4a16",
    "mxfp4",
    "nvfp4kv4",
)
# One scale per row counts as a group of this many columns when distances between schemes are compared.
COLUMNS_OF_A_ROW = 512


@dataclass(frozen=True)
class Fit:
    """How a target holds a scheme, or why it cannot."""

    storage: Storage | None = None
    """How weights are kept; None: in 16 bits."""
    reason: str | None = None
    """None, or why the target cannot hold the scheme."""
    short_reason: str | None = None
    """The reason in a word or two."""
    instead: str | None = None
    """The nearest scheme that the target can hold."""

    @property
    def summary(self) -> str:
        """The cell of the matrix of formats."""
        if self.reason is not None:
            return f"no ({self.short_reason}): {self.instead}"
        return self.storage.name if self.storage is not None else "dense"

    def to_dict(self) -> dict[str, Any]:
        """What `dfq export --list --json` prints of a cell."""
        return {
            "storage": self.storage.name if self.storage is not None else None,
            "reason": self.reason,
            "word": self.short_reason,
            "instead": self.instead,
            "cell": self.summary,
        }


@dataclass(frozen=True)
class _Refusal:
    """Why a target cannot hold a scheme: in a word or two, and in full."""

    short: str
    full: str


def target_of(name: str) -> ExportTarget:
    """Look up a target. Raises UnsupportedError that names the known ones."""
    if name not in TARGETS:
        raise UnsupportedError(
            f"`to={name}`: unknown format; use one of {', '.join(TARGETS)}, or name an engine with `engine`", field="to"
        )
    return TARGETS[name]


def fit(target: ExportTarget, scheme: QuantScheme) -> Fit:
    """How `target` holds `scheme`, or why it cannot and what it can hold instead."""
    result = _fit(target, scheme)
    if isinstance(result, _Refusal):
        return Fit(reason=result.full, short_reason=result.short, instead=nearest(target, scheme))
    return Fit(storage=result)


def _fit(target: ExportTarget, scheme: QuantScheme) -> Storage | _Refusal | None:
    """The storage of the weights, None for 16-bit weights, or the refusal."""
    if scheme.kv_bits != FULL:
        full = f"{scheme.kv_bits}-bit KV cache is not part of the format (engines have a run-time flag)"
        return _Refusal(f"kv{scheme.kv_bits}", full)
    if scheme.a_bits not in target.a_bits:
        if target.a_bits == (FULL,):
            return _Refusal("weights only", f"{scheme.a_bits}-bit activations: the format holds weights only")
        return _Refusal(f"a{scheme.a_bits}", f"{scheme.a_bits}-bit activations; only {_listed(target.a_bits)}")
    if scheme.a_bits != FULL and not scheme.a_sym:
        return _Refusal("asymmetric activations", "asymmetric dynamic activations: engines compute symmetric ones")
    if scheme.w_bits != FULL:
        return _weight_storage(target, scheme)
    if scheme.a_bits != FULL:
        return _Refusal("w16", "16-bit weights")
    return None if target.dense else _Refusal("w16", "16-bit weights: an ordinary folder, engines load it as it is")


def _weight_storage(target: ExportTarget, scheme: QuantScheme) -> Storage | _Refusal:
    """The storage of quantized weights, by bits, grid and group."""
    alike = [storage for storage in target.storages if storage.number_format == scheme.number_format]
    if not alike:
        return _Refusal(scheme.number_format, f"{scheme.number_format} weights; only integers")
    same_bits = [storage for storage in alike if storage.bits == scheme.w_bits]
    if not same_bits:
        known = _listed(sorted({storage.bits for storage in alike}))
        return _Refusal(f"w{scheme.w_bits}", f"{scheme.w_bits}-bit weights; only {known}")
    same_grid = [storage for storage in same_bits if storage.symmetric == scheme.w_sym]
    if not same_grid:
        grid = "symmetric weights" if scheme.w_sym else "asymmetric weights"
        return _Refusal(grid, f"{scheme.w_bits}-bit {grid}")
    if scheme.a_bits == FULL or scheme.a_bits != scheme.w_bits:
        same_grid = [storage for storage in same_grid if storage.without_quantized_activations]
    same_group = [storage for storage in same_grid if storage.block or scheme.w_group in storage.groups]
    storage = (same_group or same_grid)[0]
    if scheme.a_bits != FULL and not storage.with_quantized_activations:
        full = f"quantized activations beside asymmetric {scheme.w_bits}-bit weights"
        return _Refusal("asymmetric weights", full)
    if storage.block and scheme.w_group % storage.block:
        return _Refusal(f"g{scheme.w_group}", f"groups of {scheme.w_group}; only multiples of {storage.block}")
    if not storage.block and scheme.w_group not in storage.groups:
        known = _listed([group for group in storage.groups if group])
        return _Refusal(f"g{scheme.w_group}", f"groups of {scheme.w_group}; only {known} or a whole row")
    return storage


def table_storage(target: ExportTarget, table: TableScheme) -> Storage | str:
    """How `target` keeps an embedding or a head of this scheme, or why it cannot."""
    scheme = QuantScheme(table.bits, FULL, FULL, table.group, table.symmetric)
    storage = _weight_storage(target, scheme)
    return storage.full if isinstance(storage, _Refusal) else storage


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def nearest(target: ExportTarget, scheme: QuantScheme) -> str:
    """The name of the closest scheme that `target` can hold. Activations and KV cache change before weights do."""
    fp4 = scheme.number_format
    if fp4 != INTEGERS and any(storage.number_format == fp4 for storage in target.storages):
        return replace(scheme, kv_bits=FULL, kv_sym=False).name
    groups = sorted({0, 32, *(group for storage in target.storages for group in storage.groups)})
    bits = sorted({storage.bits for storage in target.storages})
    if scheme.w_bits == FULL:
        scheme = replace(scheme, w_bits=4, w_group=32)  # no bits are near 16; every format holds these
    candidates: list[tuple[tuple[float, ...], str]] = []
    for w_bits, group, w_sym, a_bits, a_sym in product(
        bits, {*groups, scheme.w_group}, (True, False), target.a_bits, (True, False)
    ):
        candidate = QuantScheme(w_bits, a_bits, FULL, group, w_sym, a_sym and a_bits != FULL)
        if isinstance(_fit(target, candidate), _Refusal):
            continue
        distance = abs((group or COLUMNS_OF_A_ROW) - (scheme.w_group or COLUMNS_OF_A_ROW))
        key = (abs(w_bits - scheme.w_bits), w_sym != scheme.w_sym, distance, abs(a_bits - scheme.a_bits), group)
        candidates.append((tuple(map(float, key)), candidate.name))
    return min(candidates)[1]


def matrix(schemes: tuple[str, ...] = SCHEMES) -> dict[str, dict[str, Fit]]:
    """Scheme -> target -> Fit, for all targets."""
    return {name: {key: fit(target, QuantScheme.parse(name)) for key, target in TARGETS.items()} for name in schemes}


def without_activations(scheme: QuantScheme) -> QuantScheme:
    """The same weights with activations and KV cache in 16 bits."""
    return replace(scheme, a_bits=FULL, kv_bits=FULL, a_sym=False, kv_sym=False, a_clip=1.0, kv_clip=1.0)
