"""Whether a scheme fits a target, why not, and which nearest one would: derived from the table of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from dfrot.errors import UnsupportedError
from dfrot.export.targets import TARGETS, ExportTarget, Storage
from dfrot.quant.scheme import FULL, QuantScheme

# What people ask for, and one of each kind that some target refuses. The matrix has a row for each.
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
    "w4a4-g32-sym",
    "w4a4-sym",
    "w4a4",
    "w4a4kv4",
)


@dataclass(frozen=True)
class Fit:
    """storage: how weights are kept (None: in 16 bits); reason: None, or why the scheme cannot be said, and the same
    in a word or two (`word`); instead: the nearest scheme that can."""

    storage: Storage | None = None
    reason: str | None = None
    word: str | None = None
    instead: str | None = None

    @property
    def cell(self) -> str:
        """What stands in the matrix."""
        if self.reason is not None:
            return f"no ({self.word}): {self.instead}"
        return self.storage.name if self.storage is not None else "dense"


@dataclass(frozen=True)
class _No:
    """Why not, in a word or two and in full."""

    word: str
    why: str


def target_of(name: str) -> ExportTarget:
    """Look up a target. Raises UnsupportedError naming the known ones."""
    if name not in TARGETS:
        raise UnsupportedError(f"--to {name}: unknown format; use one of {', '.join(TARGETS)}")
    return TARGETS[name]


def fit(target: ExportTarget, scheme: QuantScheme) -> Fit:
    """How `target` would hold `scheme`, or why not and what instead."""
    found = _fit(target, scheme)
    if isinstance(found, _No):
        return Fit(reason=found.why, word=found.word, instead=nearest(target, scheme))
    return Fit(storage=found)


def _fit(target: ExportTarget, scheme: QuantScheme) -> Storage | _No | None:
    if scheme.kv_bits != FULL:
        word = f"kv{scheme.kv_bits}"
        return _No(word, f"{scheme.kv_bits}-bit KV cache is not part of the format (engines have a run-time flag)")
    if scheme.a_bits not in target.a_bits:
        if target.a_bits == (FULL,):
            return _No("weights only", f"{scheme.a_bits}-bit activations: the format holds weights only")
        return _No(f"a{scheme.a_bits}", f"{scheme.a_bits}-bit activations; only {_list(target.a_bits)}")
    if scheme.a_bits != FULL and not scheme.a_sym:
        return _No("asymmetric activations", "asymmetric dynamic activations: engines compute symmetric ones")
    if scheme.w_bits == FULL:
        if target.dense and scheme.a_bits == FULL:
            return None
        why = (
            "16-bit weights: an ordinary folder, engines load it as it is"
            if scheme.a_bits == FULL
            else "16-bit weights"
        )
        return _No("w16", why)
    return _storage(target, scheme)


def _storage(target: ExportTarget, scheme: QuantScheme) -> Storage | _No:
    bits = [one for one in target.storages if one.bits == scheme.w_bits]
    if not bits:
        known = _list(sorted({one.bits for one in target.storages}))
        return _No(f"w{scheme.w_bits}", f"{scheme.w_bits}-bit weights; only {known}")
    grids = [one for one in bits if one.symmetric == scheme.w_sym]
    if not grids:
        word = "symmetric weights" if scheme.w_sym else "asymmetric weights"
        return _No(word, f"{scheme.w_bits}-bit {word}")
    storage = grids[0]
    if scheme.a_bits != FULL and not storage.act:
        return _No("asymmetric weights", f"quantized activations beside asymmetric {scheme.w_bits}-bit weights")
    if storage.block and scheme.w_group % storage.block:
        return _No(f"g{scheme.w_group}", f"groups of {scheme.w_group}; only multiples of {storage.block}")
    if not storage.block and scheme.w_group not in storage.groups:
        known = _list([n for n in storage.groups if n])
        return _No(f"g{scheme.w_group}", f"groups of {scheme.w_group}; only {known} or a whole row")
    return storage


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def nearest(target: ExportTarget, scheme: QuantScheme) -> str:
    """The accepted scheme closest to `scheme`: the grid of weights changes last, activations and KV first."""
    groups = sorted({0, 32, *(n for one in target.storages for n in one.groups)})
    bits = sorted({one.bits for one in target.storages})
    if scheme.w_bits == FULL:
        scheme = replace(scheme, w_bits=4, w_group=32)  # 16 bits are not near anything; this one every format holds
    found: list[tuple[tuple[float, ...], str]] = []
    for w_bits, group, w_sym, a_bits, a_sym in product(
        bits, {*groups, scheme.w_group}, (True, False), target.a_bits, (True, False)
    ):
        one = QuantScheme(w_bits, a_bits, FULL, group, w_sym, a_sym and a_bits != FULL)
        if isinstance(_fit(target, one), _No):
            continue
        # a scale per row is as far from one per group as one per 512 columns
        distance = abs((group or 512) - (scheme.w_group or 512))
        key = (abs(w_bits - scheme.w_bits), w_sym != scheme.w_sym, distance, abs(a_bits - scheme.a_bits), group)
        found.append((tuple(map(float, key)), one.name))
    return min(found)[1]


def matrix(schemes: tuple[str, ...] = SCHEMES) -> dict[str, dict[str, Fit]]:
    """Scheme -> target -> Fit, for all targets."""
    return {name: {key: fit(target, QuantScheme.parse(name)) for key, target in TARGETS.items()} for name in schemes}


def without_activations(scheme: QuantScheme) -> QuantScheme:
    """The same weights, activations and KV cache in 16 bits."""
    return replace(scheme, a_bits=FULL, kv_bits=FULL, a_sym=False, kv_sym=False, a_clip=1.0, kv_clip=1.0)
