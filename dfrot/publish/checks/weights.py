"""Checks of weights and of what config.json says of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dfrot.errors import DfqError
from dfrot.files import read_json
from dfrot.publish.finding import Finding
from dfrot.publish.published_folder import COMPRESSED_TENSORS, GGUF, GPTQ, PublishedFolder
from dfrot.rotation.rotation import ROTATION_FILE
from dfrot.rotation.transforms import TRANSFORMS_FILE
from dfrot.weight_files import INDEX, SINGLE

CONFIG = "config.json"
HEAD = re.compile(r"(?:^|\.)lm_head$")
CODES = ("weight_packed", "qweight")  # last part of the names of tensors that hold integers
BESIDE = {ROTATION_FILE, TRANSFORMS_FILE, "vision.safetensors", "draft.safetensors"}
"""Safetensors files of dfq beside the weights."""
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "num_mtp_modules")
"""Keys of config.json that count layers for multi-token prediction: DeepSeek and GLM; Qwen3-Next; others."""
SHORT = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}


def head(subject: PublishedFolder) -> Iterator[Finding]:
    """A quantized head that engines do not find, or that a tied configuration hides."""
    packed = [name.rpartition(".")[0] for name in subject.tensors if name.rpartition(".")[2] in CODES]
    heads = sorted({module for module in packed if HEAD.search(module)})
    if not heads or subject.is_draft:
        return
    name, entry = heads[0], subject.quantization
    if subject.config.get("tie_word_embeddings") is True:
        yield Finding(
            "head", CONFIG, f"tie_word_embeddings is true, yet {name} has integers of its own, which engines then "
            "replace by the embedding", "set it to false",
        )  # fmt: skip
    if subject.format == GPTQ and entry.get("lm_head") is not True:
        yield Finding(
            "head", CONFIG, f"{name} is quantized and quantization_config.lm_head is not true: engines look for a "
            "16-bit weight", "set it to true, or keep the head in 16 bits",
        )  # fmt: skip
    if subject.format == COMPRESSED_TENSORS and not _named(name, entry):
        yield Finding(
            "head", CONFIG, f"{name} is quantized and no group of quantization_config names it; `Linear` does not "
            "match a head in vLLM, which then looks for a 16-bit weight",
            f'add "re:.*{name}$" to the targets, or keep the head in 16 bits',
        )  # fmt: skip


def _named(module: str, entry: dict[str, Any]) -> bool:
    """Whether targets of compressed-tensors name a module, and `ignore` does not."""
    groups = entry.get("config_groups")
    targets = [target for group in groups.values() for target in _listed(group, "targets")] if isinstance(
        groups, dict
    ) else []  # fmt: skip
    return _matches(module, targets) and not _matches(module, _listed(entry, "ignore"))


def _listed(entry: Any, key: str) -> list[str]:
    value = entry.get(key) if isinstance(entry, dict) else None
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _matches(module: str, patterns: list[str]) -> bool:
    """Whether a name of a module, or `re:` and a pattern, is among `patterns`."""
    for pattern in patterns:
        try:
            if pattern == module or (pattern.startswith("re:") and re.match(pattern[3:], module)):
                return True
        except re.error:
            continue
    return False


def mtp(subject: PublishedFolder) -> Iterator[Finding]:
    """Layers for multi-token prediction that config.json promises and that are missing, or not excepted."""
    if subject.is_draft or subject.format == GGUF:
        return
    text = subject.config.get("text_config")
    config = {**(text if isinstance(text, dict) else {}), **subject.config}
    count, key = next(((config[key], key) for key in MTP_KEYS if isinstance(config.get(key), int)), (0, ""))
    if count <= 0:
        return
    layers = config.get("num_hidden_layers")
    behind = layers if isinstance(layers, int) else -1
    pattern = re.compile(rf"(?:^|\.)mtp\.|(?:^|\.)mtp_\w+\.|(?:^|\.)layers\.{behind}\.")
    names = sorted(name for name in subject.tensors if pattern.search(name))
    if not names:
        yield Finding(
            "mtp", CONFIG, f"{key} is {count} and no weight of such a layer is here: engines that draft with it fail",
            f"copy the layer's tensors from the base model, or set {key} to 0",
        )  # fmt: skip
        return
    ignored = _listed(subject.quantization, "ignore") + _listed(subject.quantization, "modules_to_not_convert")
    dense = [
        name.removesuffix(".weight")
        for name in names
        if name.endswith("_proj.weight") and subject.tensors[name].dtype.is_floating_point
    ]
    missing = [module for module in dense if not _matches(module, ignored)]
    if missing and subject.format in (COMPRESSED_TENSORS, GPTQ):
        yield Finding(
            "mtp", CONFIG, f"{missing[0]} and {len(missing) - 1} more of the prediction layer are in 16 bits and "
            "quantization_config does not except them", "name them in `ignore` (GPTQ: modules_to_not_convert)",
        )  # fmt: skip


def shards(subject: PublishedFolder) -> Iterator[Finding]:
    """An index and shards that disagree; shards that are missing, damaged or read by nobody."""
    for name, reason in subject.damaged.items():
        yield Finding("shards", name, reason, "copy the file again")
    if subject.format == GGUF or subject.is_draft:
        return
    index = subject.folder / INDEX
    files = {name for name in (*subject.shards, *subject.damaged) if name not in BESIDE}
    if not index.is_file():
        if SINGLE not in files:
            yield Finding("shards", SINGLE, f"is missing, and there is no {INDEX}", "copy the weights")
        for name in sorted(files - {SINGLE}):
            yield Finding(
                "shards", name, f"no {INDEX} names it, so that nobody reads it", "write the index or remove it"
            )
        return
    try:
        value = read_json(index)
    except DfqError as error:
        yield Finding("shards", INDEX, str(error).removeprefix(f"{index}: ").partition(";")[0], "restore it")
        return
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        yield Finding("shards", INDEX, "weight_map is no table of tensors and files", "restore it")
        return
    yield from _against_index(subject, weight_map, files)
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    stored = sum(e.end - e.start for shard in files & set(subject.shards) for e in subject.shards[shard].values())
    if isinstance(total, int) and total != stored and not subject.damaged:
        yield Finding("shards", INDEX, f"total_size is {total}, the tensors have {stored} bytes", "correct it")


def _against_index(subject: PublishedFolder, weight_map: dict[str, str], files: set[str]) -> Iterator[Finding]:
    """Shards and tensors against the map of the index."""
    for shard in sorted(set(weight_map.values()) - files):
        count = sum(name == shard for name in weight_map.values())
        yield Finding("shards", shard, f"is missing; {INDEX} places {count} tensors there", "copy the file")
    for shard in sorted(files - set(weight_map.values())):
        yield Finding("shards", shard, f"{INDEX} does not name it", "remove the file, or add its tensors to the index")
    places = {name: shard for shard, entries in subject.shards.items() for name in entries if shard not in BESIDE}
    for name, shard in weight_map.items():
        if shard not in subject.shards:
            continue
        if name not in places:
            yield Finding("shards", shard, f"tensor {name} is missing ({INDEX} lists it)", "copy the file again")
        elif name not in subject.shards[shard]:
            yield Finding("shards", INDEX, f"places {name} in {shard}, it lies in {places[name]}", "correct the index")
    for name in sorted(set(places) - set(weight_map)):
        if places[name] in set(weight_map.values()):
            yield Finding("shards", places[name], f"tensor {name} is not in {INDEX}", "add it to the index")


def dtypes(subject: PublishedFolder) -> Iterator[Finding]:
    """`dtype` of config.json against the tensors that are not quantized."""
    if subject.format == GGUF or subject.is_draft:
        return
    text = subject.config.get("text_config")
    places: list[tuple[str, Any]] = [(key, subject.config.get(key)) for key in ("dtype", "torch_dtype")]
    if isinstance(text, dict):
        places += [(f"text_config.{key}", text.get(key)) for key in ("dtype", "torch_dtype")]
    declared = {key: SHORT.get(str(value).removeprefix("torch."), str(value)) for key, value in places if value}
    if len(set(declared.values())) > 1:
        both = ", ".join(f"{key} {value}" for key, value in declared.items())
        yield Finding("dtypes", CONFIG, f"names two dtypes: {both[:120]}", "make them agree")
        return
    weights = {name: entry for name, entry in subject.tensors.items() if name.endswith(".weight")}
    counts = Counter(
        str(entry.dtype).removeprefix("torch.") for entry in weights.values() if entry.dtype.is_floating_point
    )
    stored = {dtype for dtype in counts if dtype in SHORT.values()}
    if declared and stored and (dtype := next(iter(declared.values()))) not in stored:
        key = next(iter(declared))
        yield Finding(
            "dtypes", CONFIG, f"{key} is {dtype[:40]}, the 16-bit tensors are {', '.join(sorted(stored))}",
            f"set it to {counts.most_common(1)[0][0]}",
        )  # fmt: skip
