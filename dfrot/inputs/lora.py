"""LoRA adapters of peft (arXiv 2106.09685), merged into a checkpoint while it is read: W + s B A.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`: per linear `base_model.model.NAME.lora_A`
[r, K] and `lora_B` [N, r], and whole tensors of `modules_to_save`. s is alpha / r, or alpha / sqrt(r) (`use_rslora`).
Sums are float32, rounded once to the dtype of the weight. What is more than that is refused: DoRA, biases, adapters of
embeddings, start values that change the weights of the model (PiSSA, OLoRA, LoftQ, CorDA).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint, TensorEntry, read_header, read_tensor
from dfrot.errors import InputError, UnsupportedError
from dfrot.files import digest_bytes, file_sha256, read_json
from dfrot.inputs.dense_view import DenseTensor, DequantizedCheckpoint, stored_tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the model's own weights alone."""
UNREAD = (
    *("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "arrow_config", "use_bdlora", "kappa_tuner_config"),
)
"""Keys of the configuration that change what an adapter computes; where they are set, it is refused."""
NAME = re.compile(r"[\w.]+")
MAX_ALPHA = 2.0**20


@dataclass(frozen=True)
class Adapter:
    """An adapter that was opened and checked by itself."""

    path: Path
    """Its folder."""
    alpha: float
    """The numerator of s."""
    alphas: dict[str, float]
    """The same for some modules, by the end of their names."""
    by_root: bool
    """Whether s divides by the root of the rank."""
    factors: dict[str, tuple[TensorEntry, TensorEntry]]
    """Module -> A and B."""
    whole: dict[str, TensorEntry]
    """Tensor -> what replaces it."""

    def scale(self, module: str, rank: int) -> float:
        """s of a module."""
        alpha = next((value for end, value in self.alphas.items() if f".{module}".endswith(f".{end}")), self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)

    @cached_property
    def files(self) -> dict[str, str]:
        """Name -> SHA-256 of its files, read once."""
        return {name: file_sha256(self.path / name) for name in (CONFIG, WEIGHTS)}


def open_adapter(path: Path) -> Adapter:
    """Open the adapter in folder `path`, reading no weight.

    Raises InputError for a folder that is none or is damaged, UnsupportedError for one that computes more than
    W + s B A."""
    file = path / CONFIG
    if not file.is_file():
        raise InputError(f"{path}: no {CONFIG}; give the folder that peft saved", field="merge_adapter", file=path)
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(f"{file}: not a JSON object", field="merge_adapter", file=file)
    _refuse_others(config, file)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise InputError(
            f"{path}: no {WEIGHTS}; save the adapter as safetensors (save_pretrained of a present-day peft)",
            field="merge_adapter",
            file=path,
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(NAME.fullmatch(name) for name in patterns):
        raise UnsupportedError(
            f"{file}: alpha_pattern holds more than names of modules", field="merge_adapter", file=file
        )
    factors, whole = _parts(read_header(weights), weights)
    alphas = {name: _alpha(value, file) for name, value in patterns.items()}
    by_root = bool(config.get("use_rslora"))
    return Adapter(path, _alpha(config.get("lora_alpha", 8), file), alphas, by_root, factors, whole)


def _refuse_others(config: dict[str, Any], file: Path) -> None:
    """Raise UnsupportedError for what is no plain LoRA."""
    kind, bias, start = config.get("peft_type"), config.get("bias", "none"), config.get("init_lora_weights", True)
    asked = [key for key in UNREAD if config.get(key)]
    fault = (
        f"peft_type {kind!r}"
        if kind != "LORA"
        else f"bias {bias!r}"
        if bias != "none"
        else f"init_lora_weights {start!r}"
        if not any(start is value or (isinstance(start, str) and start == value) for value in PLAIN_STARTS)
        else asked[0]
        if asked
        else None
    )
    if fault is not None:
        raise UnsupportedError(
            f"{file}: {fault[:80]} is not merged here; merge with peft (merge_and_unload, then save_pretrained)",
            field="merge_adapter",
            file=file,
        )


def _alpha(value: Any, file: Path) -> float:
    """A checked `lora_alpha`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
        raise InputError(f"{file}: lora_alpha is {str(value)[:40]}, not a number", field="merge_adapter", file=file)
    return float(value)


def _parts(
    entries: dict[str, TensorEntry], file: Path
) -> tuple[dict[str, tuple[TensorEntry, TensorEntry]], dict[str, TensorEntry]]:
    """The factors by module, and the tensors that replace whole ones."""
    found: dict[str, dict[str, TensorEntry]] = {}
    whole: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        if not name.startswith(PREFIX) or not entry.dtype.is_floating_point:
            _refuse(file, name, f"is not named {PREFIX}... or holds no real numbers")
        module, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_B"):
            found.setdefault(module, {})[part] = entry
        elif "lora_" in name or not name.endswith(".weight"):
            _refuse(file, name, "is no part of a plain LoRA adapter")
        else:
            whole[name.removeprefix(PREFIX)] = entry
    factors = {}
    for module, parts in found.items():
        if len(parts) != 2:
            _refuse(file, f"{PREFIX}{module}.{next(iter(parts))}.weight", "stands alone; A and B are needed")
        a, b = parts["lora_A"], parts["lora_B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            _refuse(file, a.name, f"has shape {list(a.shape)}, which does not fit {list(b.shape)} of lora_B")
        factors[module] = (a, b)
    return factors, whole


def _refuse(file: Path, name: str, fault: str) -> NoReturn:
    raise InputError(f"{file}: tensor {name} {fault}", field="merge_adapter", file=file, tensor=name)


def merged(base: Checkpoint, adapter: Adapter) -> DequantizedCheckpoint:
    """`base` with the adapter in its weights. Raises InputError for an adapter of another model."""
    for name, shape in _changed(adapter).items():
        if name not in base:
            _refuse(
                adapter.path / WEIGHTS, name, f"is not in {base.path}: an adapter of another model, or of a tied head"
            )
        if base.shape(name) != shape:
            _refuse(adapter.path / WEIGHTS, name, f"has shape {list(shape)}, the model's is {list(base.shape(name))}")
    tensors = [_tensor(base, adapter, name) for name in base.entries]
    view = base if isinstance(base, DequantizedCheckpoint) else None
    form = f"{view.format if view else '16-bit checkpoint'}, with a LoRA adapter on {len(adapter.factors)} linears"
    dtype = view.dtype if view else next(iter(base.entries.values())).dtype
    dropped = view.dropped if view else ()

    def identity() -> str:
        return digest_bytes(base.digest().encode(), *(sha.encode() for sha in adapter.files.values()))

    result = DequantizedCheckpoint(base.path, base.config, tensors, identity, form, dtype, dropped)
    result.resolved = base.resolved
    return result


def _changed(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Tensors that the adapter changes, with the shapes that it needs."""
    shapes = {f"{module}.weight": (b.shape[0], a.shape[1]) for module, (a, b) in adapter.factors.items()}
    return {**shapes, **{name: entry.shape for name, entry in adapter.whole.items()}}


def _tensor(base: Checkpoint, adapter: Adapter, name: str) -> DenseTensor:
    """A tensor of the merged checkpoint, in the dtype of the base's."""
    entry, module = base.entry(name), name.removesuffix(".weight")
    if name in adapter.whole:
        whole = adapter.whole[name]
        return DenseTensor(name, entry.dtype, entry.shape, entry.file, lambda a, b: read_tensor(whole)[a:b])
    if module not in adapter.factors or name == module:
        return stored_tensor(base, name)
    first, second = adapter.factors[module]
    scale = adapter.scale(module, first.shape[0])

    def rows(begin: int, end: int) -> Tensor:
        update = read_tensor(second)[begin:end].float() @ read_tensor(first).float()
        return torch.add(base.read_rows(name, begin, end).float(), update, alpha=scale)

    return DenseTensor(name, entry.dtype, entry.shape, entry.file, rows)
