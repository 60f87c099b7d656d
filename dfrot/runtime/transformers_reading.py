"""Whether dfq reads a folder as transformers does, found out without reading a weight.

The description of an architecture and transformers' model class are two accounts of one format. Here every parameter
of the model class is traced to the bytes that transformers would load into it, and compared with the bytes that dfq's
description finds under that name; both configurations are compared value by value.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.compat.loading import parameter_sources, tied_parameters
from dfrot.compat.logs import quiet_transformers
from dfrot.compat.rope import rope_types, types_named_in
from dfrot.errors import InputError
from dfrot.inputs import DequantizedCheckpoint
from dfrot.runtime.block_runner import hf_config

_Bytes = list[tuple[str, int, int]]
_NOT_COMPUTED = {  # entries of a configuration that say nothing about what a model computes
    *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "quantization_config"),
    *("tie_word_embeddings", "model_type", "auto_map"),
}


def key_mapping(checkpoint: Checkpoint) -> dict[str, str] | None:
    """What `from_pretrained` has to be told of the names in this folder."""
    return {f"^{re.escape(checkpoint.prefix)}": ""} if checkpoint.prefix else None


def transformers_config(checkpoint: Checkpoint) -> Any:
    """The configuration that transformers makes of the folder. Raises InputError in one line where it refuses."""
    from transformers import AutoConfig

    file = checkpoint.path / "config.json"
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here; all mean that config.json is wrong
        raise InputError(f"{file}: refused by transformers ({' '.join(str(error).split())[:300]})", file=file) from None
    known = rope_types()
    for kind in types_named_in(config):
        if kind not in known:
            raise InputError(
                f"{file}: RoPE of type {kind!r} is unknown to transformers, which knows {', '.join(known)}", file=file
            )
    return config


def auto_class(arch: BoundArch) -> Any:
    """transformers' class for models of an architecture."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForCausalLM if arch.wrapper is None else AutoModelForImageTextToText


def build_skeleton(config: Any, arch: BoundArch) -> Any:
    """The model that transformers builds for a configuration. Raises InputError in one line where it cannot."""
    try:
        with quiet_transformers():
            return auto_class(arch).from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # as above
        raise InputError(f"config.json: transformers builds no model ({_reason(error, arch)})") from None


def _reason(error: Exception, arch: BoundArch) -> str:
    """Why transformers builds no model, in one line: of a value that it looked up in vain, the entry that holds it."""
    entries = [key for key, value in arch.config.items() if error.args == (value,)] if type(error) is KeyError else []
    if entries:
        return f"it does not know {entries[0]} {error.args[0]!r}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_reading(checkpoint: Checkpoint, arch: BoundArch) -> None:
    """Raise InputError in one line where transformers would load other bytes into a parameter of this 16-bit
    checkpoint than dfq reads for it, or compute with another configuration. Weights that are dequantized when they are
    read are not compared."""
    if isinstance(checkpoint, DequantizedCheckpoint):
        return
    config = transformers_config(checkpoint)
    _compare_configs(checkpoint, arch, config)
    with torch.device("meta"):
        model = build_skeleton(config, arch)
    stored, _ = parameter_sources(model, sorted(checkpoint.on_disk), key_mapping(checkpoint))
    ours: dict[str, _Bytes] = {}
    for name, entry in checkpoint.entries.items():
        ours.setdefault(_parameter(arch, name), []).append(_place(entry))
    theirs = {name: [_place(checkpoint.on_disk[key]) for key in keys] for name, keys in stored.items()}
    tied = tied_parameters(model) if arch.tied else {}
    for target, source in tied.items():  # one of the two is enough, and both of equal bytes are one
        theirs.setdefault(source, theirs.get(target, []))
        theirs.pop(target, None)
        ours.pop(target, None)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in sorted(names - set(tied)):
        if not theirs.get(name):
            raise _differs(checkpoint, name, "is missing: transformers would start it at random")
        if _merged(ours.get(name, [])) != _merged(theirs[name]):
            raise _differs(checkpoint, name, "is read from another place by transformers than by dfq")
    if extra := sorted(name for name in ours if name not in names and not name.endswith("inv_freq")):
        raise _differs(checkpoint, extra[0], "belongs to no parameter of transformers' model, which ignores it")


def _differs(checkpoint: Checkpoint, name: str, fault: str) -> InputError:
    return InputError(
        f"{checkpoint.path}: tensor {name} {fault}; restore the folder", file=checkpoint.path, tensor=name
    )


def _parameter(arch: BoundArch, name: str) -> str:
    """transformers' parameter for a tensor of the description; of an expert, the one that holds all of them."""
    mixture = arch.spec.experts
    if mixture is not None:
        for layer_name, parts in mixture.merged:
            for part in parts:
                pattern = rf"(.*)\.{re.escape(mixture.container)}\.\d+\.{re.escape(part)}\.weight"
                if found := re.fullmatch(pattern, name):
                    return f"{found[1]}.{layer_name}"
    return arch.module(name)


def _place(entry: TensorEntry) -> tuple[str, int, int]:
    return str(entry.file), entry.start, entry.end


def _merged(places: _Bytes) -> _Bytes:
    """Byte ranges in order, those that touch made one."""
    merged: _Bytes = []
    for file, start, end in sorted(places):
        if merged and merged[-1][0] == file and merged[-1][2] == start:
            merged[-1] = (file, merged[-1][1], end)
        else:
            merged.append((file, start, end))
    return merged


def _compare_configs(checkpoint: Checkpoint, arch: BoundArch, config: Any) -> None:
    """Of a plain language model; inside a VLM the two configurations differ in type."""
    if arch.wrapper is not None:
        return
    ours, theirs = hf_config(arch.config, torch.float32).to_dict(), config.to_dict()
    for key in sorted((set(ours) | set(theirs)) - _NOT_COMPUTED):
        if ours.get(key) != theirs.get(key):
            file = checkpoint.path / "config.json"
            raise InputError(
                f"{file}: dfq reads {key} as {ours.get(key)!r}, transformers as {theirs.get(key)!r}; write it out",
                field=key,
                file=file,
            )
