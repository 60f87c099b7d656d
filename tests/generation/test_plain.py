"""Plain decoding, and serving without a draft, need none of the code of drafts."""

from __future__ import annotations

import subprocess
import sys

import pytest

GENERATE = """
from dfrot import reference
from dfrot_cli.engine import open_engine
from dfrot.generation.engine import TextRequest

engine = open_engine(reference.path(), None, None, False)
assert "".join(engine.start(TextRequest(engine.encode("def main("), 3)))
"""
SERVE = """
from dfrot import reference
from dfrot.serve.server import serve
from dfrot.serve.settings import ServeSettings
from dfrot_cli.engine import open_engine

servers = []

def ready(url):
    servers[0].should_exit = True

engine = open_engine(reference.path(), None, None, False)
serve(engine, ServeSettings("reference"), port=0, ready=ready, stop=servers.append)
"""


@pytest.mark.parametrize("code", [GENERATE, SERVE], ids=["generate", "serve"])
def test_nothing_of_drafts_is_imported(code: str) -> None:
    report = "import sys; print(*sorted(name for name in sys.modules if name.startswith('dfrot.draft')))"
    ran = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=240, cwd="/")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
