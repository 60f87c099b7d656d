"""Files that survive a crash: atomic replacement, digests, free space."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, ResourceError

HASH_CHUNK = 1 << 22  # bytes of a file that are hashed at a time
STAT_BLOCK = 512  # bytes: the unit of st_blocks (POSIX)


def fsync_folder(path: Path) -> None:
    """Make renames and creations inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name, fsync, rename: readers see the old file or the new one, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        temporary = Path(handle.name)
        try:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)


def remove_partial(path: Path) -> None:
    """Remove temporary files that `write_bytes(path)` left beside it when it was killed."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as stable JSON (sorted keys), atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises InputError for a missing file and for anything that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: file not found", file=path) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of 5000 digits
        raise InputError(f"{path}: not readable as JSON ({error}); restore the file", file=path) from None


def digest_bytes(*parts: bytes) -> str:
    """SHA-256 over length-prefixed parts, so that moving a boundary changes the digest."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    sha = hashlib.sha256()
    with file.open("rb") as handle:
        while data := handle.read(HASH_CHUNK):
            sha.update(data)
    return sha.hexdigest()


def allocated_bytes(folder: Path) -> int:
    """Bytes on disk that the files in a folder take, holes left out."""
    return sum(path.stat().st_blocks * STAT_BLOCK for path in folder.iterdir() if path.is_file())


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


@contextlib.contextmanager
def exclusive(lock: Path, busy: Exception) -> Iterator[None]:
    """Hold the file `lock`, which is created, alone. Raises `busy` while another process holds it."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise busy from None
        yield


def make_cache_folder(folder: Path, fill: Callable[[Path], None], failure: str) -> Path:
    """`folder`, below HF_HOME, with what `fill(folder)` writes: made aside and renamed, as other processes may, too.

    failure: what a ResourceError says where it cannot be written ("the tokenizer cannot be written")."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            fill(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # no other process wrote it meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}: {failure} there ({error.strerror}); set HF_HOME to a folder that can be written", file=folder
        ) from None
    return folder


def require_free_space(folder: Path, needed: int) -> None:
    """Raise ResourceError when the file system of `folder`, which need not exist, cannot take `needed` more bytes."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"{folder}: needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free; "
            "free some space or choose another `out`",
            field="out",
            file=folder,
            limit=free,
        )
