"""The changelog's table of moved modules is true: the new ones are there, the old ones are not."""

from __future__ import annotations

import importlib.util
import re
from typing import Any


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_moved_modules(pages: list[Any]) -> None:
    text = next(page.text for page in pages if page.name == "CHANGELOG.md")
    rows = re.findall(r"^\| (`dfrot\.[^|]*) \| (`dfrot\.[^|]*) \|$", text, re.MULTILINE)
    new = {name for _, right in rows for name in re.findall(r"`(dfrot[\w.]+)`", right)}
    old = {name for left, _ in rows for name in re.findall(r"`(dfrot[\w.]+)`", left)}
    assert len(new) > 50
    assert not [name for name in sorted(new) if not exists(name)]
    # a package may have taken the name of a module: then importing the old name still works
    packages = {"dfrot.outliers.measure", "dfrot.export.gguf", "dfrot.export.gptq"}
    assert not [name for name in sorted(old - packages) if exists(name)]
