"""What a folder leaves open or says twice, resolved as transformers resolves it, or refused.

A checkpoint is written by many tools, and transformers loads some folders in a way that their files do not say: a head
that config.json ties but the file holds, biases that the model class lacks. Here the tensors and the configuration
become those that transformers computes with; every change is one sentence of `Checkpoint.resolved`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dfrot.arch.bound import BoundArch
from dfrot.arch.wrapper import untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError

PREFIXES = ("_orig_mod.", "base_model.model.", "module.", "language_model.")
"""What torch.compile, peft, DataParallel and VLMs put in front of the names of all tensors."""


def without_prefix(checkpoint: Checkpoint, in_vlm: bool) -> Checkpoint:
    """`checkpoint` without prefixes that all of its names share. in_vlm: of a VLM, where `language_model.` is a part.

    The names of a model that was saved without its head lack `model.`, which transformers adds."""
    prefix = ""
    prefixes = tuple(text for text in PREFIXES if not (in_vlm and text == "language_model."))
    while more := next((text for text in prefixes if _all_begin(checkpoint, prefix + text)), ""):
        prefix += more
    if prefix:
        entries = {name.removeprefix(prefix): entry for name, entry in checkpoint.entries.items()}
        checkpoint = checkpoint.resolve(f"all tensors are named {prefix}...: read without it", entries, prefix=prefix)
    if "embed_tokens.weight" in checkpoint and "model.embed_tokens.weight" not in checkpoint and not in_vlm:
        entries = {
            name if name.startswith("lm_head.") else f"model.{name}": entry
            for name, entry in checkpoint.entries.items()
        }
        checkpoint = checkpoint.resolve("tensors are named without model.: read with it", entries)
    return checkpoint


def _all_begin(checkpoint: Checkpoint, prefix: str) -> bool:
    return bool(checkpoint.entries) and all(name.startswith(prefix) for name in checkpoint.entries)


def with_named_dtype(checkpoint: Checkpoint, arch: BoundArch) -> Checkpoint:
    """`checkpoint` with the dtype of its embedding where config.json says "auto"."""
    embed = checkpoint.entries.get(f"{arch.spec.embed}.weight")
    for key in ("dtype", "torch_dtype"):
        if checkpoint.config.get(key) == "auto" and embed is not None:
            dtype = str(embed.dtype).removeprefix("torch.")
            note = f"config.json: {key} is auto: {dtype}, that of {embed.name}"
            checkpoint = checkpoint.resolve(note, config={**checkpoint.config, key: dtype})
    return checkpoint


def with_narrow_floats(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with float64 tensors read as float32, the widest dtype that runs."""
    wide = [name for name, entry in checkpoint.entries.items() if entry.dtype == torch.float64]
    config = {
        key: "float32" if key in ("dtype", "torch_dtype") and value == "float64" else value
        for key, value in checkpoint.config.items()
    }
    if not wide and config == checkpoint.config:
        return checkpoint
    cast = {name: replace(checkpoint.entries[name], dtype=torch.float32, cast_from=torch.float64) for name in wide}
    note = f"{len(wide)} tensors are float64: read as float32"
    return checkpoint.resolve(note, {**checkpoint.entries, **cast}, config)


def with_one_head(checkpoint: Checkpoint, arch: BoundArch) -> Checkpoint:
    """`checkpoint` with config.json and tensors of one mind on whether the head shares the embedding's weight.

    transformers ties two equal tensors, keeps two different ones, and ties an embedding that is missing to the head."""
    head, embed = f"{arch.spec.head.name}.weight", f"{arch.spec.embed}.weight"
    if not arch.tied or head not in checkpoint:
        return checkpoint
    entries = {name: entry for name, entry in checkpoint.entries.items() if name != head}
    if embed not in checkpoint:
        note = f"{embed} is missing, config.json ties it to {head}: that is both"
        return checkpoint.resolve(note, {embed: checkpoint.entries[head], **entries})
    if checkpoint.repeats(head, embed):
        return checkpoint.resolve(f"{head} repeats {embed}, to which config.json ties it: not read", entries)
    note = (
        f"config.json ties {head} to {embed}, but the file holds another one: untied "
        "(tie_word_embeddings false), as transformers loads it"
    )
    return checkpoint.resolve(note, config=untie_config(checkpoint.config))


def with_known_biases(checkpoint: Checkpoint, arch: BoundArch) -> Checkpoint:
    """`checkpoint` without biases that the model class does not have, all of them zero.

    transformers ignores such tensors. Raises InputError for one that is not zero: the weights are then another
    model's, or config.json denies what they need."""
    known = arch.biases()
    linears = {f"{name}.bias": linear for _, linear, name in arch.linears()}
    linears[f"{arch.spec.head.name}.bias"] = arch.spec.head
    extra = [name for name in checkpoint.entries if name in linears and name not in known]
    for name in extra:
        if bool(checkpoint.read(name).any()):
            entry = checkpoint.entries[name]
            switch = arch.spec.bias_switch(linears[name].name)
            remedy = f"set {switch} to true in config.json, or remove the tensor" if switch else "remove the tensor"
            raise InputError(
                f"{entry.file}: tensor {entry.name} is a bias that {arch.spec.model_type} does not have with this "
                f"config.json, and that transformers ignores; {remedy}",
                file=entry.file,
                tensor=entry.name,
            )
    if not extra:
        return checkpoint
    entries = {name: entry for name, entry in checkpoint.entries.items() if name not in set(extra)}
    note = f"{len(extra)} biases that {arch.spec.model_type} does not have are zero ({min(extra)}): not read"
    return checkpoint.resolve(note, entries)
