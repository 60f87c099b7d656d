"""Python of the docs: it compiles, and every import in it resolves."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from typing import Any

OURS = ("dfrot", "dfrot_kernels", "dfrot_cli")


def unresolved(code: str) -> list[str]:
    """Names that `code` imports and that are not there; of other packages, only whether they are installed."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in modules:
            if not module.startswith(OURS):
                if importlib.util.find_spec(module.split(".")[0]) is None:
                    missing.append(module)
                continue
            try:
                loaded = importlib.import_module(module)
                if name is not None and not hasattr(loaded, name):
                    importlib.import_module(f"{module}.{name}")
            except ImportError:
                missing.append(f"{module}.{name}" if name else module)
    return missing


def test_every_import_of_a_python_block_resolves(pages: list[Any]) -> None:
    count, wrong = 0, []
    for page in pages:
        if page.name == "CONTRIBUTING.md":  # its walk-throughs are followed by tests/contributing
            continue
        for block in page.blocks:
            if block.language == "python":
                count += 1
                wrong += [f"{page.name}:{block.line}: {name}" for name in unresolved(block.text)]
    assert not wrong
    assert count >= 4


def test_a_missing_name_is_noticed() -> None:
    assert unresolved("from dfrot.runtime.load import lode") == ["dfrot.runtime.load.lode"]
    assert unresolved("import dfrot\nfrom dfrot.hf.load import load") == ["dfrot.hf.load.load"]
