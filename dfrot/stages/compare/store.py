"""Measured cells on disk, by what decides them: a later comparison takes over what it shares with an earlier one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dfrot
import dfrot_kernels
from dfrot.errors import ExistsError, InputError, ResourceError
from dfrot.files import digest_bytes, digest_json, exclusive, read_json, remove_partial, write_json

LOCK = ".lock"
_CODE = ("*.py", "*.so")


@functools.cache
def code_digest() -> str:
    """Identity of the library's and the kernels' files. Versions alone do not tell two states of a checkout apart."""
    parts: list[bytes] = []
    for package in (dfrot, dfrot_kernels):
        folder = Path(str(package.__file__)).parent
        for file in sorted(path for pattern in _CODE for path in folder.rglob(pattern)):
            parts += [str(file.relative_to(folder)).encode(), file.read_bytes()]
    return digest_bytes(*parts)


class CellStore:
    """A folder with one JSON file per measured cell, and the folder `work` for checkpoints.

    A file holds `request`, what decides the cell's numbers; `code`, the state of dfq that measured it; `value`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Work in the folder, alone.

        Raises ResourceError when it cannot be made, ExistsError while another process works in it."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{self.folder}: cannot be created ({error.strerror}); choose another `store`",
                field="store",
                file=self.folder,
            ) from None
        busy = ExistsError(
            f"{self.folder}: another dfq compare is working here; wait for it, or choose another `store`",
            field="store",
            file=self.folder,
        )
        with exclusive(self.folder / LOCK, busy):
            yield

    def _file(self, request: dict[str, Any]) -> Path:
        return self.folder / f"{digest_json(request)[:32]}.json"

    def has(self, request: dict[str, Any]) -> bool:
        """Whether the cell was measured."""
        return self._file(request).is_file()

    def get(self, request: dict[str, Any]) -> dict[str, Any]:
        """What was measured. Raises InputError for a file that was changed."""
        file = self._file(request)
        entry = read_json(file)
        same = isinstance(entry, dict) and digest_json(entry.get("request")) == digest_json(request)
        if not same or not isinstance(entry.get("value"), dict) or not isinstance(entry.get("code"), str):
            raise InputError(f"{file}: is not what dfq compare wrote; delete it to measure again", file=file)
        return {**entry["value"], "same_code": entry["code"] == code_digest()}

    def put(self, request: dict[str, Any], value: dict[str, Any]) -> None:
        """Keep what was measured."""
        file = self._file(request)
        remove_partial(file)
        write_json(file, {"request": request, "code": code_digest(), "value": value})
