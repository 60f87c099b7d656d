"""One stage of the pipeline as a folder: made in a working folder, journaled, published by rename.

While a stage runs, everything lies in `.NAME.partial` beside the final folder. A journal names the finished
units of work; the next run of the same request continues from there. Publishing fsyncs all files and renames the
folder, so the final name holds either nothing or a complete result. `stage.json` records the request and the result,
and nothing that differs between two runs of the same request (no dates, no durations).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError, ExistsError, InputError, MismatchError, ResourceError
from dfrot.files import digest_json, exclusive, fsync_folder, read_json, write_json

JOURNAL, LOCK, REQUEST, RECORD = "journal.jsonl", ".lock", "request.json", "stage.json"
_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left within the disk quota",
    errno.EFBIG: "a file would be larger than the file system or the process limit (ulimit -f) allows",
}


def versions() -> dict[str, str]:
    """Versions of everything that can change a result, by name."""
    names = ("dfq", "torch", "transformers", "numpy", "safetensors")
    installed = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {**installed, "python": platform.python_version()}


class Stage:
    """A unit of resumable work that ends in one published folder. Use through `open_stage`."""

    def __init__(self, out: Path, kind: str, request: dict[str, Any]) -> None:
        """out: the final folder; kind: name of the stage; request: settings and digests of inputs, as JSON."""
        self.out = out
        self.kind = kind
        self.request = request
        self.folder = out.parent / f".{out.name}.partial"
        self.finished = False
        self._done: dict[str, Any] = {}

    @property
    def resumed(self) -> int:
        """Number of units that are finished; after opening, those of the interrupted run."""
        return len(self._done)

    def done(self, unit: str) -> bool:
        """Whether `unit` is finished."""
        return unit in self._done

    def finished_units(self) -> dict[str, Any]:
        """The values of finished units by name."""
        return dict(self._done)

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
        """Delete the working folder: nothing of this run is worth continuing."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, result: dict[str, Any]) -> None:
        """Make everything durable, write `stage.json` with the entries of `result`, give the folder its final name."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
            else:
                fsync_folder(path)
        fsync_folder(self.folder)
        record = {"kind": self.kind, "request": self.request, "versions": versions(), **result}
        write_json(self.folder / RECORD, record)  # from here on the folder is complete, whatever happens
        self._rename()

    def _rename(self) -> None:
        """Give the complete working folder its final name; an old result goes when the new one is in place."""
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

    def load_journal(self) -> None:
        """Read the finished units of an interrupted run."""
        journal = self.folder / JOURNAL
        if not journal.exists():
            return
        content = journal.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # a line cut by a crash was never promised
        journal.write_bytes(content)
        for line in content.decode().splitlines():
            entry = json.loads(line)
            self._done[entry["unit"]] = entry["value"]


def _same_request(path: Path, kind: str, request: dict[str, Any]) -> bool:
    """Whether the JSON file `path` states this kind and request."""
    try:
        stored = read_json(path)
    except DfqError:
        return False
    return (
        isinstance(stored, dict)
        and stored.get("kind") == kind
        and digest_json(stored.get("request")) == digest_json(request)
    )


@contextlib.contextmanager
def open_stage(
    out: Path, kind: str, request: dict[str, Any], resume: bool | None = None, overwrite: bool = False
) -> Iterator[Stage]:
    """Open (or continue) the stage that will publish `out`.

    Args:
        out: the final folder.
        kind: name of the stage, for instance `rotate`.
        request: settings and digests of inputs, as JSON: what decides the bytes of the result.
        resume: None continues an interrupted run of the same request and starts over otherwise; True demands one
            (or an already finished result of the same request, then `stage.finished` is set); False starts over.
        overwrite: replace an existing `out`, which must be a result of dfq or empty.

    Raises ExistsError when `out` exists and neither `overwrite` nor a matching `resume` was given, when `overwrite`
    would delete what dfq did not write, or when another process works on it; MismatchError when `resume` is demanded
    and the interrupted run is another request's; ResourceError when the folder cannot be created or the disk is full.
    """
    stage = Stage(out, kind, request)
    if _exists(out) and not overwrite:
        if resume and _same_request(out / RECORD, kind, request):
            stage.finished = True
            yield stage
            return
        raise ExistsError(
            f"{out}: already exists; choose another `out`, or replace it with `overwrite`",
            field=("out", "overwrite"),
            file=out,
        )
    refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{out}: cannot be created ({error.strerror}); choose another `out`", field="out", file=out
        ) from None
    busy = ExistsError(f"{stage.folder}: another dfq process is working here; wait for it", file=stage.folder)
    with exclusive(stage.folder / LOCK, busy):
        _prepare(stage, resume)
        if stage.finished:
            yield stage
            return
        with _failures_cleaned(stage):
            yield stage


def refuse_inputs(out: Path, *inputs: Path | None) -> None:
    """Raise InputError where `out` is one of the folders or files that a stage reads, or holds one: `overwrite` would
    delete it."""
    for path in inputs:
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            what = "is an input of this command" if out.resolve() == path.resolve() else f"holds the input {path}"
            raise InputError(f"{out}: {what}; choose another `out`", field="out", file=out)


def _exists(out: Path) -> bool:
    """Whether something has this name. Raises ResourceError for a name that the file system does not take."""
    try:
        out.lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return False  # a parent is a file, which making the folder names
    except OSError as error:
        raise ResourceError(
            f"{out}: cannot be used ({error.strerror}); choose another `out`", field="out", file=out
        ) from None
    return True


def refuse_foreign(out: Path) -> None:
    """Raise ExistsError where publishing over `out` would delete what dfq did not write: a file, a link, or a folder
    with other contents."""
    if out.is_symlink():
        problem = "is a symbolic link; give the folder that it points to"
    elif out.exists() and not out.is_dir():
        problem = "is a file; choose another `out`"
    elif out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        problem = f"holds no {RECORD}, so dfq did not write it and does not replace it; choose another `out`"
    else:
        return
    raise ExistsError(f"{out}: {problem}", field="out", file=out)


def _prepare(stage: Stage, resume: bool | None) -> None:
    """Continue or empty the working folder, or publish a run that was killed between its last byte and the rename.

    Raises MismatchError when `resume` is demanded and the folder holds another request's run."""
    folder = stage.folder
    if resume is not False and _same_request(folder / RECORD, stage.kind, stage.request):
        stage._rename()
        return
    same = _same_request(folder / REQUEST, stage.kind, stage.request)
    if resume and (folder / REQUEST).exists() and not same:
        raise MismatchError(
            f"{folder}: holds an interrupted run of another request; start over with `resume=False`",
            field="resume",
            file=folder,
        )
    if not same or resume is False:
        _empty(folder)
        write_json(folder / REQUEST, {"kind": stage.kind, "request": stage.request})
    stage.load_journal()
    _remove_temporary_files(folder)


@contextlib.contextmanager
def _failures_cleaned(stage: Stage) -> Iterator[None]:
    """Delete the folder of a run that was refused before any unit was finished; name a full disk, a quota or a limit of
    file sizes in one line."""
    try:
        yield
    except DfqError:
        if not stage.resumed:
            stage.discard()
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"{stage.out}: {_FULL[error.errno]}; make room and run again to resume", file=stage.out
            ) from None
        raise


def _remove_temporary_files(folder: Path) -> None:
    """Delete what a killed writer left behind (temporary names begin with a dot)."""
    for path in folder.rglob(".*"):
        if path.name != LOCK and path.is_file():
            path.unlink()


def _empty(folder: Path) -> None:
    """Delete everything in `folder` except the lock."""
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """The `stage.json` of a published stage. Raises InputError for a folder without one, MismatchError when it is the
    record of another kind of stage."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("kind") != kind:
        actual = record.get("kind") if isinstance(record, dict) else None
        raise MismatchError(f"{folder}: is the result of {actual or 'something else'}, not of dfq {kind}", file=folder)
    return record
