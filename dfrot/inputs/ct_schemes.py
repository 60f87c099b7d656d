"""The `quantization_config` of compressed-tensors: which weights are quantized, and how. Fields may hold any type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dfrot.errors import InputError, UnsupportedError

PACKED, NVFP4, MXFP4 = "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"
ELEMENTWISE = ("int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized")
FORMATS = (PACKED, *ELEMENTWISE, NVFP4, MXFP4)
STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
NESTED_REPEAT = re.compile(r"[*+}][?+]?\)[*+{]")
"""A repeated group that ends in a repetition: such a pattern can take exponential time."""
MAX_PATTERN = 1000
FUSED = ("weight_input", "weight_output")
"""Locations of transforms that are part of the stored weights."""


@dataclass(frozen=True)
class WeightScheme:
    """How the weights of a module are stored."""

    format: str
    """One of FORMATS."""
    bits: int
    """Bits of a code."""
    kind: str
    """`int` or `float`."""
    strategy: str
    """Which weights share a scale: one of STRATEGIES."""
    group: int | None
    """Columns per scale (strategies group and tensor_group)."""
    block: tuple[int, int] | None
    """Rows and columns per scale (strategy block)."""
    symmetric: bool
    """Whether there are no zero points."""


@dataclass(frozen=True)
class SchemeTable:
    """The schemes of a folder."""

    file: Path
    """The config.json."""
    groups: tuple[tuple[tuple[str, ...], WeightScheme | None], ...]
    """(targets, scheme); None: a group that quantizes activations only."""
    quantizes_activations: bool
    """Whether a group or the KV cache has a scheme of activations."""

    def of(self, module: str) -> WeightScheme:
        """The scheme of a quantized module: of the first group that names it, else that a pattern matches, else that
        is given by a class of modules. Raises InputError where there is none."""
        schemes = {scheme for _, scheme in self.groups if scheme is not None}
        if len(schemes) == 1:
            return next(iter(schemes))
        for matches in (_is_name, _is_pattern, _is_class):
            for targets, scheme in self.groups:
                if scheme is not None and any(matches(target, module) for target in targets):
                    return scheme
        raise InputError(
            f"{self.file}: {module} is quantized, and no group of quantization_config has it; restore the file",
            file=self.file,
            tensor=module,
        )


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], module) is not None


def _is_class(target: str, module: str) -> bool:
    """Class names have no dots and begin with a capital letter."""
    return target[:1].isupper() and "." not in target


def read_schemes(entry: dict[str, Any], file: Path) -> SchemeTable:
    """The schemes of a quantization_config in config.json `file`.

    Raises InputError for an entry that contradicts itself, UnsupportedError for what is not read."""
    _refuse_unread(entry, file)
    groups = entry.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        _malformed(file, "config_groups")
    rows = []
    activations = entry.get("kv_cache_scheme") is not None
    for name, group in groups.items():
        if not isinstance(group, dict):
            _malformed(file, f"config_groups.{str(name)[:40]!r}")
        activations |= any(group.get(key) is not None for key in ("input_activations", "output_activations"))
        rows.append((_targets(group, file), _scheme(entry, group, file)))
    return SchemeTable(file, tuple(rows), activations)


def _refuse_unread(entry: dict[str, Any], file: Path) -> None:
    """Raise UnsupportedError for sparse weights and for rotations that are applied while the model runs."""
    sparsity = entry.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(
            f"{file}: sparse weights ({str(sparsity.get('format'))[:40]!r}) are not read; start from dense ones",
            file=file,
        )
    transforms = entry.get("transform_config") or {}
    groups = transforms.get("config_groups") or {} if isinstance(transforms, dict) else None
    if not isinstance(groups, dict):
        _malformed(file, "transform_config")
    for transform in groups.values():
        places = transform.get("apply") if isinstance(transform, dict) else None
        if not isinstance(places, list) or not all(isinstance(place, dict) for place in places):
            _malformed(file, "transform_config")
        online = [place.get("location") for place in places if place.get("location") not in FUSED]
        if online:
            raise UnsupportedError(
                f"{file}: transform_config applies a rotation at {str(online[0])[:40]!r} while the model runs, which "
                "is not read; start from the original checkpoint",
                file=file,
            )


def _targets(group: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The targets of a group, patterns checked."""
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        _malformed(file, "targets")
    for target in targets:
        if target.startswith("re:"):
            if len(target) > MAX_PATTERN or NESTED_REPEAT.search(target):
                _malformed(file, f"targets (pattern {target[:40]!r})")
            try:
                re.compile(target[3:])
            except (re.error, RecursionError, OverflowError):
                _malformed(file, f"targets (pattern {target[:40]!r})")
    return tuple(targets)


def _scheme(entry: dict[str, Any], group: dict[str, Any], file: Path) -> WeightScheme | None:
    """The scheme of a group's weights."""
    weights = group.get("weights")
    if weights is None:
        return None
    if not isinstance(weights, dict):
        _malformed(file, "weights")
    stored = group.get("format") or entry.get("format")
    if stored not in FORMATS:
        raise UnsupportedError(
            f"{file}: compressed-tensors format {str(stored)[:40]!r} is not read ({', '.join(FORMATS)} are); start "
            "from the original checkpoint",
            file=file,
        )
    bits, kind, size = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("group_size")
    if type(bits) is not int or not 1 <= bits <= 8:
        _malformed(file, "num_bits")
    if kind not in ("int", "float"):
        _malformed(file, "type")
    if size is not None and (type(size) is not int or not (size == -1 or 0 < size < 2**31)):
        _malformed(file, "group_size")
    default = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.get("strategy") or default
    if strategy not in STRATEGIES or (strategy in ("group", "tensor_group") and (size is None or size < 1)):
        _malformed(file, "strategy")
    return WeightScheme(stored, bits, kind, strategy, size, _block(weights, strategy, file), _symmetric(weights, file))


def _block(weights: dict[str, Any], strategy: str, file: Path) -> tuple[int, int] | None:
    """`block_structure`, a list or a string such as 128x128."""
    if strategy != "block":
        return None
    value = weights.get("block_structure")
    sizes = [int(size) for size in value.split("x") if size.isdecimal()] if isinstance(value, str) else value
    if (
        not isinstance(sizes, list)
        or len(sizes) != 2
        or not all(type(size) is int and 0 < size < 2**31 for size in sizes)
    ):
        _malformed(file, "block_structure")
    return sizes[0], sizes[1]


def _symmetric(weights: dict[str, Any], file: Path) -> bool:
    symmetric = weights.get("symmetric", True)
    if not isinstance(symmetric, bool):
        _malformed(file, "symmetric")
    return symmetric


def _malformed(file: Path, field: str) -> NoReturn:
    raise InputError(f"{file}: quantization_config is not compressed-tensors' ({field}); restore the file", file=file)
