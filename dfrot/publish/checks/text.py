"""Checks of what turns text and images into tokens, mostly against the base model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError
from dfrot.files import file_sha256, read_json
from dfrot.inputs.fingerprint import PROCESSOR_FILES
from dfrot.publish.finding import Finding
from dfrot.publish.published_folder import GGUF, PublishedFolder

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
GENERATION = "generation_config.json"
TUNED = re.compile(r"(?:^|[-_.])(?:instruct|chat|it|sft|dpo)(?:$|[-_.])", re.IGNORECASE)
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0}
"""Entries of generation_config.json that have no meaning without sampling -> their neutral value."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ADDED = ("content", "id", "special", "lstrip", "rstrip", "normalized", "single_word")


def tokenizer(subject: PublishedFolder) -> Iterator[Finding]:
    """A tokenizer that is missing, or that differs from the base model's."""
    if subject.is_draft:
        return
    if subject.format == GGUF:
        if "tokenizer.ggml.model" not in subject.metadata and not subject.damaged:
            yield Finding("tokenizer", "the GGUF file", "holds no tokenizer", "export the model again")
        return
    files = [name for name in VOCABULARY_FILES if (subject.folder / name).is_file()]
    if not files:
        yield Finding("tokenizer", "tokenizer.json", "is missing", "copy the base model's tokenizer files")
        return
    base = subject.base_folder
    if base is None:
        yield _not_compared("tokenizer", "the tokenizer", subject)
        return
    both = [name for name in files if (base / name).is_file()]
    if not both:
        yield _not_compared("tokenizer", "the tokenizer", subject, "the base model holds none of the same files")
    for name in both:
        if file_sha256(subject.folder / name) == file_sha256(base / name):
            continue
        problem = _difference(subject.folder / name, base / name) if name == "tokenizer.json" else "its bytes differ"
        if problem:
            yield Finding(
                "tokenizer", name, f"differs from the base model's: {problem}", "copy the base model's, or, if the "
                "change is meant, use `force`",
            )  # fmt: skip


def _difference(ours: Path, theirs: Path) -> str:
    """What a tokenizer.json changes about token ids; empty for another way to write the same."""
    try:
        one, other = read_json(ours), read_json(theirs)
    except DfqError:
        return "one of the two is not readable as JSON"
    if not isinstance(one, dict) or not isinstance(other, dict):
        return "one of the two is no JSON object"
    for part in ("vocab", "merges"):
        if _part(one, part) != _part(other, part):
            return f"its {part} has {_count(one, part)} entries, the base model's {_count(other, part)}"
    if _added(one) != _added(other):
        return f"{len(_added(one))} added tokens, the base model has {len(_added(other))}, or others"
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if one.get(part) != other.get(part):
            return f"its {part}"
    return ""


def _part(value: dict[str, Any], name: str) -> Any:
    model = value.get("model")
    part = model.get(name) if isinstance(model, dict) else None
    if name == "merges" and isinstance(part, list):  # "a b" and ["a", "b"] are two ways to write a merge
        return [tuple(item.split(" ", 1)) if isinstance(item, str) else tuple(item) for item in part]
    return part


def _count(value: dict[str, Any], name: str) -> int:
    part = _part(value, name)
    return len(part) if isinstance(part, (dict, list)) else 0


def _added(value: dict[str, Any]) -> list[tuple[Any, ...]]:
    tokens = value.get("added_tokens")
    rows = tokens if isinstance(tokens, list) else []
    return sorted((tuple(row.get(key) for key in ADDED) for row in rows if isinstance(row, dict)), key=str)


def _not_compared(check: str, what: str, subject: PublishedFolder, why: str = "") -> Finding:
    reason = why or ("its files are not at hand" if subject.base else "no base model is named")
    return Finding(
        check, what, f"was not compared with the base model: {reason}", "give `base_folder`, or look yourself",
        blocks=False,
    )  # fmt: skip


def chat_template(subject: PublishedFolder) -> Iterator[Finding]:
    """A chat template that the base model has and the folder lacks."""
    if subject.is_draft:
        return
    if subject.format == GGUF:
        present = isinstance(subject.metadata.get("tokenizer.chat_template"), str)
        where = "tokenizer.chat_template"
    else:
        present, where = _has_template(subject.folder), TEMPLATE_FILES[0]
    if present:
        return
    if subject.base_folder is not None and _has_template(subject.base_folder):
        yield Finding("chat template", where, "is missing, the base model has one", "copy it from the base model")
    elif subject.base_folder is None and TUNED.search(f"{subject.base or ''}-{subject.name}"):
        yield Finding(
            "chat template", where, "is missing, and the name says that the model was tuned for conversations",
            "copy it from the base model",
        )  # fmt: skip


def _has_template(folder: Path) -> bool:
    """Whether a folder holds a chat template, in a file of its own or in tokenizer_config.json."""
    if any((folder / name).is_file() for name in TEMPLATE_FILES) or any(folder.glob("additional_chat_templates/*")):
        return True
    file = folder / "tokenizer_config.json"
    try:
        value = read_json(file) if file.is_file() else None
    except DfqError:
        return False
    return isinstance(value, dict) and bool(value.get("chat_template"))


def generation_config(subject: PublishedFolder) -> Iterator[Finding]:
    """generation_config.json: missing, unreadable for transformers, or with token ids beyond the vocabulary."""
    if subject.is_draft or subject.format == GGUF:
        return
    file, base = subject.folder / GENERATION, subject.base_folder
    if not file.is_file():
        if base is not None and (base / GENERATION).is_file():
            yield Finding("generation config", GENERATION, "is missing, the base model has one", "copy it from there")
        return
    try:
        value = read_json(file)
    except DfqError:
        value = None
    if not isinstance(value, dict):
        yield Finding("generation config", GENERATION, "is not a JSON object", "copy it from the base model")
        return
    if value.get("do_sample") is not True:
        odd = [key for key, plain in SAMPLING.items() if value.get(key) not in (None, plain)]
        if odd:
            yield Finding(
                "generation config", GENERATION, f"sets {', '.join(odd)} without do_sample: transformers refuses to "
                "save such a model", "set do_sample to true, or remove them",
            )  # fmt: skip
    rows = subject.config.get("vocab_size")
    for key in TOKEN_IDS:
        ids = value.get(key)
        for number in ids if isinstance(ids, list) else [ids]:
            if isinstance(number, int) and isinstance(rows, int) and not 0 <= number < rows:
                yield Finding(
                    "generation config", GENERATION, f"{key} {number} is beyond the vocabulary of {rows}",
                    "copy the file from the base model",
                )  # fmt: skip


def processor(subject: PublishedFolder) -> Iterator[Finding]:
    """The files that prepare images, which a VLM needs."""
    if subject.is_draft or subject.format == GGUF:
        return
    sees = any(key in subject.config for key in ("vision_config", "image_token_id", "image_token_index"))
    base = subject.base_folder
    for name in (*PROCESSOR_FILES, "video_preprocessor_config.json"):
        if base is not None and sees and (base / name).is_file() and not (subject.folder / name).is_file():
            yield Finding("processor", name, "is missing, the base model has it", "copy it from there")
    if sees and base is None and not any((subject.folder / name).is_file() for name in PROCESSOR_FILES):
        yield Finding(
            "processor", PROCESSOR_FILES[-1], "is missing, and config.json describes a model that reads images",
            "copy it from the base model",
        )  # fmt: skip
