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


def test_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one test: scripts read what those before them wrote, whichever process of pytest runs them."""
    for script, printed in SCRIPTS.items():
        runpy.run_path(str(EXAMPLES / script))["main"](tmp_path)
        assert printed in capsys.readouterr().out, script


def test_every_example_is_run_and_takes_public_names_only() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    page = (EXAMPLES.parent / "docs/reference/python-api.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("dfrot."):
                for alias in node.names:
                    assert alias.name in page, f"{path.name}: {alias.name} is not in docs/reference/python-api.md"
