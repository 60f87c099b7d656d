"""The scripts of examples/ run on the reference model, in the order in which they build on each other."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# script -> what it must print
SCRIPTS = {
    "quantize.py": "bits per quantized weight",
    "generate.py": "def read(self, size):",
    "perplexity.py": "95 % interval",
    "make_task.py": "500 items of stdlib",
    "outliers.py": "massive activation: channel",
    "speculative.py": "identical to plain decoding: True",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs(script: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / script))["main"](folder)
    assert SCRIPTS[script] in capsys.readouterr().out


def test_every_example_is_run_and_takes_public_names_only() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    page = (EXAMPLES.parent / "docs/reference/python-api.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("dfrot."):
                for alias in node.names:
                    assert alias.name in page, f"{path.name}: {alias.name} is not in docs/reference/python-api.md"
