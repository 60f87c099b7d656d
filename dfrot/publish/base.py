"""The base model of a folder: its hub id, its small files, its licence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dfrot.data.tokenizer import TOKENIZER_FILES
from dfrot.errors import DfqError, InputError
from dfrot.hub import cached_folder, parse_hub_name
from dfrot.hub_download import fetch_small_files
from dfrot.publish.front_matter import front_matter, read_card, text_of
from dfrot.publish.published_folder import PublishedFolder
from dfrot.publish.settings import PublishSettings

SMALL_FILES = ("config.json", *TOKENIZER_FILES, "additional_chat_templates/*.jinja", "README.md", "LICENSE*", "NOTICE*",
               "USE_POLICY*")  # fmt: skip


def with_base(subject: PublishedFolder, settings: PublishSettings) -> PublishedFolder:
    """The subject with its card, base model, the base's folder and the licence, as far as they are known.

    Raises InputError where no base model is named: a card without one says nothing of where a model comes from."""
    card = read_card(subject.folder)
    entries = front_matter(card, str(subject.folder / "README.md"))
    base = _hub_id(settings.base) if settings.base is not None else _recorded(subject.record, entries)
    if base is None:
        raise InputError(
            f"{subject.folder}: its record does not say which model of the hub it was made from; give `base`",
            field="base",
            file=subject.folder,
        )
    folder = settings.base_folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"`base_folder` {folder}: is no folder", field="base_folder", file=folder)
    folder = folder or cached_folder(base) or fetch_small_files(base, SMALL_FILES)
    licence = settings.license or text_of(entries.get("license")) or (None if folder is None else _license(folder))
    return replace(
        subject,
        card=card,
        card_entries=entries,
        base=base,
        base_folder=folder,
        license=licence.strip().lower() if licence is not None else None,
    )


def _hub_id(name: str) -> str:
    """OWNER/NAME of an alias, hub id or page of the hub."""
    return parse_hub_name(name).hub_id


def _recorded(record: dict[str, Any], entries: dict[str, Any]) -> str | None:
    """The base model that the card or the record names."""
    hub = record.get("hub")
    recorded = hub.get("hub_id") if isinstance(hub, dict) else None
    name = text_of(entries.get("base_model")) or recorded
    if not isinstance(name, str):
        return None
    try:
        return parse_hub_name(name).hub_id
    except InputError as error:
        raise InputError(f"base_model {name[:80]!r}: is no model of the hub; give `base`", field="base") from error


def _license(folder: Path) -> str | None:
    """The licence that a base model's card names."""
    try:
        return text_of(front_matter(read_card(folder), str(folder)).get("license"))
    except DfqError:
        return None
