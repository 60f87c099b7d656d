"""One stage of the pipeline as a folder: worked on aside, journaled, published by rename.

While a stage runs, everything lies in `.NAME.partial` beside the final folder. A journal names the finished
units of work; a killed run finds it and continues. Publishing fsyncs all files and renames the folder, so the
final name holds either nothing or a complete result. `stage.json` records what was asked and what came out, and
nothing that differs between two runs of the same request (no dates, no durations).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError, ExistsError, MismatchError, ResourceError
from dfrot.files import digest_json, fsync_folder, read_json, write_json

Progress = Callable[[str, int, int], None]
"""`progress(label, done, total)`: called by the library, shown by the command line."""

JOURNAL, LOCK, REQUEST, RECORD = "journal.jsonl", ".lock", "request.json", "stage.json"


def silent(label: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def versions() -> dict[str, str]:
    """Versions that can change a result."""
    names = ("dfq", "torch", "transformers", "numpy", "safetensors")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "python": platform.python_version()}


class Stage:
    """A unit of resumable work that ends in one published folder. Use through `open_stage`."""

    def __init__(self, out: Path, kind: str, request: dict[str, Any]) -> None:
        self.out = out
        self.kind = kind
        self.request = request
        self.folder = out.parent / f".{out.name}.partial"
        self.finished = False
        self._done: dict[str, Any] = {}

    @property
    def resumed(self) -> int:
        """How many units were found finished."""
        return len(self._done)

    def done(self, unit: str) -> bool:
        return unit in self._done

    def recall(self, unit: str) -> Any:
        """The value that was recorded with a finished unit."""
        return self._done[unit]

    def mark(self, unit: str, value: Any = None) -> None:
        """Record that `unit` is complete and durable; `value` must be JSON."""
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"unit": unit, "value": value}, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        self._done[unit] = value

    def discard(self) -> None:
        """Give up: nothing of this run is worth continuing."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, evidence: dict[str, Any]) -> None:
        """Make everything durable, write `stage.json`, give the folder its final name."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
            else:
                fsync_folder(path)
        fsync_folder(self.folder)
        record = {"kind": self.kind, "request": self.request, "versions": versions(), **evidence}
        write_json(self.folder / RECORD, record)  # from here on the folder is complete, whatever happens
        self._rename()

    def _rename(self) -> None:
        for name in (JOURNAL, REQUEST, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        fsync_folder(self.folder)
        old = self.out.parent / f".{self.out.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(old)
        self.folder.rename(self.out)
        fsync_folder(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)
        self.finished = True

    def _load(self) -> None:
        journal = self.folder / JOURNAL
        if not journal.exists():
            return
        whole = journal.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]  # a line cut by a crash was never promised
        journal.write_bytes(whole)
        for line in whole.decode().splitlines():
            entry = json.loads(line)
            self._done[entry["unit"]] = entry["value"]


def _same_request(path: Path, kind: str, request: dict[str, Any]) -> bool:
    try:
        found = read_json(path)
    except DfqError:
        return False
    return (
        isinstance(found, dict)
        and found.get("kind") == kind
        and digest_json(found.get("request")) == digest_json(request)
    )


@contextlib.contextmanager
def open_stage(
    out: Path, kind: str, request: dict[str, Any], resume: bool | None = None, overwrite: bool = False
) -> Iterator[Stage]:
    """Open (or continue) the stage that will publish `out`.

    `resume`: None continues an interrupted run of the same request and starts over otherwise; True demands one
    (or an already finished result of the same request, then `stage.finished` is set); False starts over.
    Raises ExistsError when `out` is there and neither `overwrite` nor a matching `resume` was given.
    """
    stage = Stage(out, kind, request)
    if out.exists() and not overwrite:
        if resume and _same_request(out / RECORD, kind, request):
            stage.finished = True
            yield stage
            return
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be created ({error.strerror}); choose another --out") from None
    with (stage.folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ExistsError(f"{stage.folder}: another dfq process is working here; wait for it") from None
        if resume is not False and _same_request(stage.folder / RECORD, kind, request):
            stage._rename()  # killed between the last byte and the rename
            yield stage
            return
        same = _same_request(stage.folder / REQUEST, kind, request)
        if resume and (stage.folder / REQUEST).exists() and not same:
            raise MismatchError(f"{stage.folder}: holds an interrupted run of another request; use --no-resume")
        if not same or resume is False:
            _empty(stage.folder)
            write_json(stage.folder / REQUEST, {"kind": kind, "request": request})
        stage._load()
        _sweep(stage.folder)
        try:
            yield stage
        except DfqError:
            if not stage._done:  # refused before anything was worth keeping
                shutil.rmtree(stage.folder, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno == 28:
                raise ResourceError(f"{out}: no space left on the disk; free some and run again to resume") from None
            raise


def _sweep(folder: Path) -> None:
    """Drop files that a killed writer left aside (their names begin with a dot)."""
    for path in folder.rglob(".*"):
        if path.name != LOCK and path.is_file():
            path.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """The `stage.json` of a published stage of the given kind. Raises InputError/MismatchError otherwise."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("kind") != kind:
        found = record.get("kind") if isinstance(record, dict) else None
        raise MismatchError(f"{folder}: is the result of {found or 'something else'}, not of dfq {kind}")
    return record
