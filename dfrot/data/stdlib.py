"""Text that every CPython carries: standard-library sources and the topics of ``pydoc``.

Nothing is downloaded and nothing is committed; the running interpreter is the corpus. A module belongs to the
train or to the held-out split by the hash of its top-level name, so that the split is the same on every machine
and a module never changes sides between Python versions (``_pydatetime`` follows ``datetime``).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]

DELIMITER = "\n\f\n"
"""Between pieces: a form feed on its own line, the page separator of Python sources. It is rare in the text itself."""

PIECE_CHARS = 3000
"""A piece ends at the first blank line after this many characters, which makes 0.1 % of tokens delimiters."""

HELD_OUT_OF_256 = 16
"""Names whose first hash byte is below this are held out (about 6 % of names)."""

# Tests, applications and machine-specific files: not everywhere installed, or not written by hand.
EXCLUDED_MODULES = frozenset(
    [
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "test",
        "turtledemo",
        "_sysconfigdata",
    ]
)
# Tables of numbers and names, without regularities to learn.
EXCLUDED_FILES = frozenset({"html/entities.py", "re/_casefix.py", "stringprep.py"})
EXCLUDED_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "_bundled"})


def split_of(name: str) -> Split:
    """Return the split of a top-level module or topic, from its name alone."""
    stem = re.sub(r"^_+(py)?", "", name)
    first = hashlib.sha256(stem.encode()).digest()[0]
    return "test" if first < HELD_OUT_OF_256 else "train"


@functools.cache
def text(split: Split) -> str:
    """Return one split as one text, its pieces joined by `DELIMITER`.

    The order of documents is by hash, not by name: neighbours are unrelated, as in any shuffled corpus.
    """
    shuffled = sorted(documents(split), key=lambda document: hashlib.sha256(document[0].encode()).digest())
    return DELIMITER.join(piece for _, body in shuffled for piece in pieces(body))


def documents(split: Split) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document of the split: source files, then topics of ``pydoc``."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in sorted(sys.stdlib_module_names - EXCLUDED_MODULES):
        if split_of(module) == split:
            for path in _sources(root, module):
                body = path.read_bytes().decode("utf-8", errors="replace")
                yield path.relative_to(root).as_posix(), body
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for topic, body in sorted(topics.items()):
        if split_of(topic) == split:
            yield f"pydoc_data/topics/{topic}", body


def pieces(body: str) -> Iterator[str]:
    """Cut a document at blank lines into pieces of a little more than `PIECE_CHARS`, form feeds removed."""
    lines = body.replace("\f", "").replace("\r\n", "\n").strip("\n").split("\n")
    piece: list[str] = []
    size = 0
    for line in lines:
        blank = not line.strip()
        if (size >= PIECE_CHARS and blank) or size >= 2 * PIECE_CHARS:
            yield "\n".join(piece).strip("\n")
            piece, size = [], 0
            if blank:
                continue
        piece.append(line)
        size += len(line) + 1
    last = "\n".join(piece).strip("\n")
    if last:
        yield last


def _sources(root: Path, module: str) -> Iterator[Path]:
    """The source files of a top-level module or package below `root`, without those that are excluded."""
    single = root / f"{module}.py"
    if single.is_file():
        files = [single]
    else:
        files = sorted((root / module).rglob("*.py"))
    for path in files:
        relative = path.relative_to(root)
        if relative.as_posix() not in EXCLUDED_FILES and EXCLUDED_FOLDERS.isdisjoint(relative.parts):
            yield path
