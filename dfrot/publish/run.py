"""`dfq publish`: a checked folder with a model card, on the hub or in a folder that shows what would go."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dfrot.errors import ExistsError, InputError, ResourceError, UnsupportedError
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.files import write_bytes
from dfrot.progress import Progress, silent
from dfrot.publish.base import with_base
from dfrot.publish.card import card_of
from dfrot.publish.checks import run_checks
from dfrot.publish.finding import Finding
from dfrot.publish.front_matter import CARD
from dfrot.publish.measured import measured_tables
from dfrot.publish.published_folder import DRAFT_GGUF, GGUF, PublishedFolder, read_published_folder
from dfrot.publish.sent_files import is_sent
from dfrot.publish.settings import PublishSettings
from dfrot.publish.upload import upload
from dfrot.stage_folder import refuse_foreign, refuse_inputs


def publish(
    folder: Path,
    settings: PublishSettings,
    out: Path | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = silent,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Check `folder` (a packed checkpoint, an export or a draft), write its card and send it to the hub.

    Args:
        folder: the folder. Nothing is changed in it; a README.md that it holds is the card.
        settings: where it goes, and what the card says.
        out: with `dry_run`, the folder that shows what would go.
        dry_run: send nothing; without `out` only check.
        progress: called while files are sent.
        overwrite: replace an existing `out`, which must be a result of dfq or empty.

    Returns {"repository", "format", "base_model", "license", "files", "findings", "card"}, and of an upload "url",
    "commit" and "commit_url". Raises UnsupportedError with the first failed check, unless `force`; ResourceError for
    what the hub refuses."""
    subject = with_base(read_published_folder(folder, settings.to), settings)
    findings = run_checks(subject)
    if out is not None and not dry_run:
        raise InputError("`out` belongs to `dry_run`: an upload writes no folder", field=("out", "dry_run"))
    if out is not None and out.exists() and not overwrite:
        raise ExistsError(f"{out}: already exists; choose another `out`, or replace it with `overwrite`",
                          field=("out", "overwrite"), file=out)  # fmt: skip
    if out is not None:
        refuse_inputs(out, folder)
        refuse_foreign(out)
    names = _names(subject)
    gguf = next((target for source, target in names.items() if source.endswith(".gguf")), None)
    card = card_of(subject, measured_tables(subject, settings.results), gguf)
    result: dict[str, Any] = {
        "repository": settings.to,
        "format": subject.format,
        "base_model": subject.base,
        "license": subject.license,
        "files": {target: (folder / source).stat().st_size for source, target in names.items() if source != CARD}
        | {CARD: len(card.encode())},
        "findings": [finding.to_dict() | {"line": finding.line} for finding in findings],
        "card": card,
    }
    if not dry_run:
        refuse(findings, settings)
        with tempfile.TemporaryDirectory(prefix="dfq-publish-") as name:
            place = Path(name)
            assemble(subject, names, card, place, links=True)
            message = f"{subject.format} of {subject.base}, by dfq publish"
            result |= upload(place, settings.to, settings.private, settings.revision, message, progress)
    elif out is not None:
        _write_copy(subject, names, card, out)
    return result


def refuse(findings: list[Finding], settings: PublishSettings) -> None:
    """Raise UnsupportedError for a failed check, unless `force` overrides it."""
    failed = [finding for finding in findings if finding.blocks and not (settings.force and finding.forcible)]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more checks fail: see `dry_run`)" if len(failed) > 1 else ""
    hint = ", or publish it with `force`" if all(finding.forcible for finding in failed) else ""
    raise UnsupportedError(f"{failed[0].line}{hint}{more}", field=("dry_run", "force"), file=failed[0].where)


def _names(subject: PublishedFolder) -> dict[str, str]:
    """Path in the folder -> path in the repository, for what is sent. A GGUF file gets a name that says what it is."""
    names = {name: name for name in subject.file_names() if is_sent(name) and (subject.folder / name).is_file()}
    storage = "BF16" if subject.format == DRAFT_GGUF else subject.record.get("storage")
    if subject.format in (GGUF, DRAFT_GGUF) and FILE_NAME in names and isinstance(storage, str):
        names[FILE_NAME] = f"{subject.name.removesuffix('-GGUF').removesuffix('-gguf')}-{storage}.gguf"
    return names


def assemble(subject: PublishedFolder, names: dict[str, str], card: str, place: Path, links: bool) -> None:
    """Put what is sent into the empty folder `place`. links: symbolic links to the folder's files; False: copies, hard
    links where the file system has them."""
    for source, target in names.items():
        if source == CARD:
            continue
        file = (subject.folder / source).resolve()
        (place / target).parent.mkdir(parents=True, exist_ok=True)
        if links:
            (place / target).symlink_to(file)
            continue
        try:
            os.link(file, place / target)
        except OSError:
            shutil.copyfile(file, place / target)
    write_bytes(place / CARD, card.encode())


def _write_copy(subject: PublishedFolder, names: dict[str, str], card: str, out: Path) -> None:
    """The folder that would go, made aside and renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            assemble(subject, names, card, place, links=False)
            place.chmod(0o755)
            if out.exists():
                shutil.rmtree(out)
            place.rename(out)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written ({error.strerror}); choose another `out`", field="out",
                            file=out) from None  # fmt: skip
