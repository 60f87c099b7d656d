"""docs/reference/python-api.md says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import dfrot

GENERATOR = Path(__file__).resolve().parents[2] / "docs/reference/generate_python_api.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_python_api", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_gives(generator: ModuleType) -> None:
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), f"run python {GENERATOR.name}"


def test_every_exported_name_is_described_and_resolves(generator: ModuleType) -> None:
    assert not generator.missing()
    for name in generator.EXPORTS:
        assert getattr(dfrot, name) is not None
