"""The table of architectures. A new model is a description and its row here; the algebra tests run over all of them."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfrot.arch.bind import bind
from dfrot.arch.bound import BoundArch, Tap
from dfrot.arch.layouts import with_described_names
from dfrot.arch.llama import GRANITE, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from dfrot.arch.moe import MIXTRAL, OLMOE, QWEN3_MOE
from dfrot.arch.postnorm import GEMMA2, GEMMA3, OLMO2
from dfrot.arch.resolve import with_known_biases, with_named_dtype, with_narrow_floats, with_one_head, without_prefix
from dfrot.arch.space import Size, Space
from dfrot.arch.spec import ArchSpec, Linear, Norm
from dfrot.arch.vlm import WRAPPERS
from dfrot.arch.wrapper import untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError

ARCHS: dict[str, ArchSpec] = {
    spec.model_type: spec
    for spec in (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, PHI3, MIXTRAL, QWEN3_MOE, OLMOE, OLMO2, GEMMA2, GEMMA3)
}


def is_described(config: dict[str, Any]) -> bool:
    """Whether a `config.json` names a language model or a VLM of the tables."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and (model_type in ARCHS or model_type in WRAPPERS)


def describe(config: dict[str, Any], where: str = "config.json") -> BoundArch:
    """The description of a checkpoint with this `config.json`; of a VLM, of its language model.

    where: how error messages name the file. Raises UnsupportedError for an unknown model, InputError for values that do
    not fit together."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in WRAPPERS:
        text_config = WRAPPERS[model_type].language(config)
        if text_config["model_type"] in WRAPPERS:
            raise InputError(
                f"{where}: {model_type} holds no language model (text_config is missing, or no language model)",
                file=where,
            )
        return replace(describe(text_config, where), wrapper=WRAPPERS[model_type])
    if not isinstance(model_type, str) or model_type not in ARCHS:
        known = [*ARCHS, *WRAPPERS]
        near = difflib.get_close_matches(str(model_type), known, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise UnsupportedError(
            f"{where}: model_type {model_type!r} is unknown (known: {', '.join(known)}{hint}); "
            "describe it in dfrot/arch/ to add it",
            file=where,
        )
    return bind(ARCHS[model_type], config)


def open_described(path: Path | str) -> tuple[Checkpoint, BoundArch]:
    """Open a 16-bit folder and check it against its architecture. Raises DfqError where it does not fit."""
    return described(Checkpoint.open(Path(path)))


def described(checkpoint: Checkpoint) -> tuple[Checkpoint, BoundArch]:
    """An open checkpoint, resolved (see `resolve`) and checked against the description of its architecture. Raises
    DfqError where it does not fit."""
    checkpoint, arch = resolve(checkpoint)
    arch.check(checkpoint)
    return checkpoint, arch


def resolve(checkpoint: Checkpoint, to_run: bool = False) -> tuple[Checkpoint, BoundArch]:
    """`checkpoint` under the names of its architecture's description, and as transformers would load it where its
    files leave that open; what was decided is in `Checkpoint.resolved`. Raises DfqError for what cannot be decided.

    Nothing is checked for completeness: `BoundArch.check` does that.

    to_run: it will run, or be made into what runs, which is never in float64."""
    where = str(checkpoint.path / "config.json")
    checkpoint = without_prefix(checkpoint, in_vlm=str(checkpoint.config.get("model_type")) in WRAPPERS)
    arch = describe(checkpoint.config, where)
    checkpoint = with_named_dtype(with_described_names(checkpoint, arch), arch)
    checkpoint = with_narrow_floats(checkpoint) if to_run else checkpoint
    checkpoint = with_known_biases(with_one_head(checkpoint, arch), arch)
    return checkpoint, describe(checkpoint.config, where)


__all__ = [
    "ARCHS",
    "ArchSpec",
    "BoundArch",
    "Linear",
    "Norm",
    "Size",
    "Space",
    "Tap",
    "describe",
    "described",
    "is_described",
    "open_described",
    "resolve",
    "untie_config",
    "with_described_names",
]
