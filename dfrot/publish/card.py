"""The model card: what a model is, what was measured, how it was made, how it is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfrot.errors import DfqError
from dfrot.export.inspect import inspect
from dfrot.export.serving.command import serving_commands
from dfrot.export.serving.planning import engines_for
from dfrot.publish.drafts import draft_facts, target_note
from dfrot.publish.front_matter import with_front_matter
from dfrot.publish.licences import attribution
from dfrot.publish.measured import MeasuredTable
from dfrot.publish.origin import made_by
from dfrot.publish.published_folder import (
    COMPRESSED_TENSORS,
    DRAFT,
    DRAFT_GGUF,
    GGUF,
    GPTQ,
    PACKED,
    TITLES,
    PublishedFolder,
)

LIBRARIES = {
    **{PACKED: "dfq", DRAFT: "dfq", GGUF: "gguf", DRAFT_GGUF: "gguf"},
    **{COMPRESSED_TENSORS: "transformers", GPTQ: "transformers"},
}
"""Format -> what loads it; others are `speculators`."""
WRITTEN_BY_EXPORT = "Written by `dfq export --for"
FACTS = ("weights", "activations", "kv", "embedding", "head", "online", "bits_per_quantized_weight", "parameters")
"""What `dfq inspect` says that the card repeats."""


def card_of(subject: PublishedFolder, tables: Sequence[MeasuredTable], file: str | None = None) -> str:
    """The folder's own card, with front matter where it has none; the card that dfq writes where the folder has no
    README.md, or the one of `dfq export --for`, which says how to serve a folder and no more."""
    if subject.card_entries:
        return subject.card
    if subject.card and WRITTEN_BY_EXPORT not in subject.card:
        return with_front_matter(_entries(subject), subject.card)
    return make_card(subject, tables, file)


def make_card(subject: PublishedFolder, tables: Sequence[MeasuredTable], file: str | None = None) -> str:
    """The card of a folder that has none. file: of GGUF, the name in the repository."""
    return with_front_matter(_entries(subject), "\n".join(_sections(subject, tables, file)))


def _entries(subject: PublishedFolder) -> dict[str, Any]:
    """The front matter."""
    sees = any(key in subject.config for key in ("vision_config", "image_token_id", "image_token_index"))
    entries: dict[str, Any] = {"base_model": subject.base}
    if not subject.is_draft:
        entries["base_model_relation"] = "quantized"
    entries["library_name"] = LIBRARIES.get(subject.format, "speculators")
    entries["pipeline_tag"] = "image-text-to-text" if sees else "text-generation"
    if subject.license is not None:
        entries["license"] = subject.license
    scheme = _scheme(subject)
    tags = ["dfq", "speculative-decoding" if subject.is_draft else "quantized", *([scheme] if scheme else [])]
    if subject.format in (COMPRESSED_TENSORS, GPTQ):
        tags.append(subject.format)
    entries["tags"] = tags
    return entries


def _scheme(subject: PublishedFolder) -> str | None:
    scheme = subject.record.get("scheme", subject.metadata.get("dfq.scheme"))
    return scheme if isinstance(scheme, str) else None


def _sections(subject: PublishedFolder, tables: Sequence[MeasuredTable], file: str | None) -> list[str]:
    """The text of the card, in pieces of whole lines."""
    scheme = _scheme(subject)
    kind = TITLES[subject.format]
    if subject.is_draft:
        opening = f"{kind[0].upper()}{kind[1:]}, for [{subject.base}]({_page(subject)})."
    else:
        as_scheme = f" as {scheme}" if scheme else ""
        opening = f"[{subject.base}]({_page(subject)}){as_scheme}: {kind}, made with dfq."
    parts = [f"# {subject.name}\n", opening + "\n"]
    if subject.license is not None and (sentence := attribution(subject.license)) is not None:
        parts.append(sentence + "\n")
    parts += [_facts(subject), "## Measured\n"]
    if tables:
        parts += [table.markdown() for table in tables]
    else:
        parts.append("No measurements were published with this model.\n")
    if commands := made_by(subject):
        parts += ["## How it was made\n", _block(commands)]
        parts.append("Options that are not shown have the defaults of the version below, or are not in the record.\n")
    parts += ["## Serve it\n", _serving(subject, file)]
    if notes := _notes(subject):
        parts += ["## Notes\n", "".join(f"- {note}\n" for note in notes)]
    if versions := _versions(subject):
        parts.append(f"Made with {versions}.\n")
    return parts


def _page(subject: PublishedFolder) -> str:
    return f"https://huggingface.co/{subject.base}"


def _facts(subject: PublishedFolder) -> str:
    """What the folder is, as a list."""
    weights = [path for path in sorted(subject.folder.iterdir()) if path.suffix in (".safetensors", ".gguf")]
    size = sum(path.stat().st_size for path in weights)
    rows = [("size on disk", f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB")]
    if not subject.is_draft:
        try:
            facts = inspect(subject.folder)
        except DfqError:  # a damaged folder that is published by force
            facts = {}
        rows = [(key.replace("_", " "), _fact(facts[key])) for key in FACTS if facts.get(key) not in (None, "")] + rows
    else:
        rows += draft_facts(subject).rows()
    return "".join(f"- {name}: {text}\n" for name, text in rows)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _serving(subject: PublishedFolder, file: str | None) -> str:
    served = engines_for(subject.folder) if subject.format in (COMPRESSED_TENSORS, GPTQ) else ()
    config = subject.metadata if subject.format == DRAFT_GGUF else subject.config
    commands = serving_commands(subject.format, subject.repository, file, subject.base, served, config)
    text = _block([f"{command}  # {engine}" for engine, command in commands])
    if subject.format == PACKED:
        text += (
            "\nFrom Python, with dfq installed:\n\n```python\nimport dfrot  # registers dfq checkpoints with "
            "transformers\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{subject.repository}")\n```\n'
        )
    return text


def _block(lines: Sequence[str]) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def _notes(subject: PublishedFolder) -> list[str]:
    """What the record asks users to know."""
    notes = subject.record.get("notes")
    texts = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    if subject.format == PACKED:
        texts.append("Other engines do not read this layout; `dfq export` writes theirs.")
    if subject.is_draft and (note := target_note(subject, draft_facts(subject))):
        texts.append(note)
    hub = subject.record.get("hub")
    if isinstance(hub, dict) and isinstance(commit := hub.get("commit"), str):
        texts.append(f"The base model's commit is `{commit}`.")
    return texts


def _versions(subject: PublishedFolder) -> str:
    versions = subject.record.get("versions")
    if not isinstance(versions, dict):
        return ""
    return ", ".join(f"{name} {versions[name]}" for name in ("dfq", "torch", "transformers") if name in versions)
