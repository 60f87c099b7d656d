"""The table of architectures. A new model is a description and its row here; the algebra tests run over all."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from dfrot.arch.layouts import with_described_names
from dfrot.arch.llama import GRANITE, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from dfrot.arch.moe import MIXTRAL, OLMOE, QWEN3_MOE
from dfrot.arch.postnorm import GEMMA2, GEMMA3, OLMO2
from dfrot.arch.spec import ArchSpec, BoundArch, Linear, Norm, Tap
from dfrot.arch.vlm import WRAPPERS
from dfrot.arch.wrapper import untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError

ARCHS: dict[str, ArchSpec] = {
    spec.model_type: spec
    for spec in (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, PHI3, MIXTRAL, QWEN3_MOE, OLMOE, OLMO2, GEMMA2, GEMMA3)
}


def is_described(config: dict[str, Any]) -> bool:
    """Whether a `config.json` names a model of the table, or one of those that see."""
    kind = config.get("model_type")
    return isinstance(kind, str) and (kind in ARCHS or kind in WRAPPERS)


def describe(config: dict[str, Any], where: str = "config.json") -> BoundArch:
    """The bound description of a checkpoint's `config.json`; of a model that sees, of its language model. Raises
    UnsupportedError for an unknown one."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in WRAPPERS:
        inside = WRAPPERS[kind].language(config)
        if inside["model_type"] in WRAPPERS:
            raise InputError(f"{where}: {kind} holds no language model (text_config is missing, or no language model)")
        return replace(describe(inside, where), wrapper=WRAPPERS[kind])
    if not isinstance(kind, str) or kind not in ARCHS:
        near = difflib.get_close_matches(str(kind), [*ARCHS, *WRAPPERS], 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise UnsupportedError(
            f"{where}: model_type {kind!r} is unknown (known: {', '.join([*ARCHS, *WRAPPERS])}{hint}); "
            "describe it in dfrot/arch/ to add it"
        )
    return ARCHS[kind].bind(config)


def open_described(path: Any) -> tuple[Checkpoint, BoundArch]:
    """Open a checkpoint folder and check it against its architecture's description."""
    checkpoint = Checkpoint.open(path)
    arch = describe(checkpoint.config, str(checkpoint.path / "config.json"))
    checkpoint = with_described_names(checkpoint, arch)
    arch.check(checkpoint)
    return checkpoint, arch


__all__ = [
    "ARCHS",
    "ArchSpec",
    "BoundArch",
    "Linear",
    "Norm",
    "Tap",
    "describe",
    "is_described",
    "open_described",
    "untie_config",
    "with_described_names",
]
