"""The YAML between the two `---` lines at the top of a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dfrot.errors import InputError

CARD = "README.md"
RULE = "---"
MAX_BYTES = 4 << 20  # of a card


def read_card(folder: Path) -> str:
    """The text of a folder's card; empty where it has none. Raises InputError for one that is no text."""
    file = folder / CARD
    if not file.is_file():
        return ""
    try:
        raw = file.read_bytes()
        if len(raw) > MAX_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        return raw.decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: is not readable as text ({error}); correct or remove it", file=file) from None


def front_matter(card: str, where: str) -> dict[str, Any]:
    """The entries of a card; empty for a card without. Raises InputError for what is no plain YAML."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != RULE:
        return {}
    ends = [number for number, line in enumerate(lines[1:], 1) if line.strip() == RULE]
    if not ends:
        raise InputError(f"{where}: its front matter has no closing {RULE}; add the line", file=where)
    text = "\n".join(lines[1 : ends[0]])
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases (*name) are not allowed")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: its front matter is not YAML ({reason}); correct it", file=where) from None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where}: its front matter is no table of names and values; correct it", file=where)
    return {str(key): item for key, item in (value or {}).items()}


def with_front_matter(entries: dict[str, Any], body: str) -> str:
    """A card: the entries in their order, then the text."""
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"{RULE}\n{text}{RULE}\n\n{body}"


def text_of(value: Any) -> str | None:
    """An entry that should be text; the first item of a list; None for anything else."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else None
