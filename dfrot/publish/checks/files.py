"""Checks of the folder's files: what a machine left in them, and the licence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError
from dfrot.publish.finding import Finding
from dfrot.publish.licences import LICENCES, naming_rule, needs_name, refusal
from dfrot.publish.published_folder import PublishedFolder
from dfrot.publish.sent_files import LARGEST_TEXT, PICKLED, is_sent, is_weight
from dfrot.safetensors_file import read_metadata

PATH = re.compile(
    r"""(?<![\w.~:/-])(?:file:/{2,3})?(?:/(?:home|Users|root|tmp|var|mnt|opt|srv|data|datasets|workspace|scratch"""
    r"""|gpfs|lustre|content|kaggle|media|work|nfs|private)/|[A-Za-z]:\\+Users\\+|~/)[^\s"'`<>)\]}]+"""
)
"""An absolute path of somebody's machine."""
SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{20,}|glpat-[\w-]{20,}|AIza[\w-]{35})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""An access token."""
HOST = re.compile(r"\b[\w.-]+@[\w-]+(?:\.local|\.lan|\.internal|-desktop|-laptop)\b")
"""USER@MACHINE."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Files whose entries may look like paths."""
SHOWN = 80  # characters of what was found
CACHES = ("__pycache__", ".cache", ".git", ".DS_Store", ".ipynb_checkpoints", ".partial")


def leftovers(subject: PublishedFolder) -> Iterator[Finding]:
    """Absolute paths, user names and access tokens in files; pickles, code, links and caches."""
    left_out = []
    for name in subject.file_names():
        file = subject.folder / name
        if name.endswith(PICKLED):
            yield Finding("leftovers", name, "may run code where it is read", "remove it; dfq sends no pickles")
        elif name.endswith(".py"):
            yield Finding("leftovers", name, "is code, which nobody should have to trust", "remove it")
        elif not is_sent(name):
            left_out.append(name)
        elif not file.is_file():
            yield Finding("leftovers", name, "is a link to nothing", "remove it or copy the file")
        else:
            yield from _in_texts(name, _texts(file), paths=name not in VOCABULARIES)
    if "auto_map" in subject.config:
        yield Finding("leftovers", "config.json", "auto_map asks for code from the repository", "remove the entry")
    for text in subject.metadata.values():
        if isinstance(text, str) and len(text) < LARGEST_TEXT:
            yield from _in_texts("metadata of the GGUF file", [text], paths=True)
    if left_out:
        caches = sorted({part for name in left_out for part in name.split("/") if part in CACHES})
        names = ", ".join([*caches, *(name for name in left_out if not any(part in name for part in CACHES))][:4])
        yield Finding(
            "leftovers", names, f"{len(left_out)} files are no part of a checkpoint", "they are left out", blocks=False
        )


def _texts(file: Path) -> list[str]:
    """What a file says in words: its text, or the strings in its header."""
    if file.suffix == ".gguf" or file.suffix in (".png", ".model"):
        return []
    try:
        if is_weight(file.name):
            return list(read_metadata(file).values())
        return [file.read_bytes()[:LARGEST_TEXT].decode("utf-8", errors="replace")]
    except (DfqError, OSError):
        return []  # the check of shards says it


def _in_texts(name: str, texts: list[str], paths: bool) -> Iterator[Finding]:
    """Paths, machines and tokens in the texts of one file; a path is shown, a token never."""
    for text in texts:
        if (match := SECRET.search(text)) is not None:
            yield Finding(
                "leftovers", name, f"holds what looks like an access token ({match[0][:4]}...)",
                "remove it, and revoke the token", forcible=False,
            )  # fmt: skip
        if not paths:
            continue
        places = PATH.findall(text)
        if places:
            count = f" and {len(places) - 1} more" if len(places) > 1 else ""
            yield Finding(
                "leftovers", name, f"names a place on a machine: {places[0][:SHOWN]}{count}",
                "write the model's or the dataset's name there",
            )  # fmt: skip
        if (match := HOST.search(text)) is not None:
            yield Finding("leftovers", name, f"names a user and a machine: {match[0][:SHOWN]}", "remove it")


def licence(subject: PublishedFolder) -> Iterator[Finding]:
    """A licence that is missing, unknown to the hub, or that does not allow what is published."""
    identifier = subject.license
    if identifier is None:
        yield Finding(
            "licence", "README.md", "names no licence, and the base model's is not known here",
            "give `license`, as the base model's page names it",
        )  # fmt: skip
        return
    if (reason := refusal(identifier)) is not None:
        yield Finding("licence", identifier, reason, "ask the authors, or keep the result to yourself")
    elif identifier not in LICENCES:
        yield Finding(
            "licence", identifier, "is no identifier of the hub", "take one of the hub's list, or `license=other`"
        )
    if needs_name(identifier) and not _text(subject.card_entries.get("license_name")):
        yield Finding(
            "licence", "README.md", f"licence {identifier} needs license_name and license_link in the front matter",
            "write a README.md with both into the folder",
        )  # fmt: skip
    rule = naming_rule(identifier, subject.name)
    if rule is not None:
        yield Finding("licence", subject.repository, rule, "choose another name")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
