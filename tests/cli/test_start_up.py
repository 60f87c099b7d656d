"""`dfq generate` and `dfq serve` start without the modelling code of transformers, which takes seconds to import."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

SLOW = ("scipy", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor")
"""What else transformers brings along."""
RUN = """
import json, sys
from dfrot_cli.main import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps([name for name in sys.modules]), file=sys.stderr)
sys.exit(code)
"""
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def packed(dfq: Any, make: Any, tmp_path: Path) -> Path:
    """A packed folder, made by the commands."""
    model, folder = make(), tmp_path / "packed"
    (model / "chat_template.jinja").write_text(TEMPLATE)
    ran = dfq("quantize", "--model", model, "--scheme", "w4a4kv4", "--algorithm", "rtn", "--out", folder)
    assert ran.code == 0, ran.err
    return folder


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def slow(loaded: list[str]) -> list[str]:
    """Modules among the loaded ones that make a start slow."""
    heavy = ("transformers.models", "transformers.generation", "transformers.modeling_utils", *SLOW)
    return [name for name in loaded if any(name == prefix or name.startswith(f"{prefix}.") for prefix in heavy)]


def generated(*arguments: object) -> tuple[Any, list[str]]:
    """The result of `dfq generate` as JSON, and the modules that it loaded."""
    ran = start("generate", "--prompt", "line 7", "--max-new-tokens", 12, "--json", *arguments)
    out, err = ran.communicate(timeout=120)
    assert ran.returncode == 0, err
    return json.loads(out), json.loads(err.splitlines()[-1])


@pytest.mark.parametrize("kind", ["packed", "16 bits"])
def test_generate(dfq: Any, make: Any, request: pytest.FixtureRequest, kind: str) -> None:
    model = request.getfixturevalue("packed") if kind == "packed" else make()
    result, loaded = generated("--model", model)
    assert not [name for name in loaded if name.split(".")[0] == "transformers"]
    assert not slow(loaded)
    again = dfq("generate", "--model", model, "--prompt", "line 7", "--max-new-tokens", 12, "--json").json
    assert result["tokens"] == again["tokens"]


def test_a_conversation(packed: Path) -> None:
    """Its template is rendered by transformers, from a module that needs no model."""
    result, loaded = generated("--model", packed, "--chat")
    assert not slow(loaded)
    assert "transformers.tokenization_utils_base" in loaded
    assert result["prompt_tokens"] == len("user: line 7\n")


def test_the_list_of_slow_modules_is_not_empty(packed: Path, make: Any) -> None:
    """What the tests look for is there where transformers builds the model: a check that they can fail."""
    _, loaded = generated("--model", make("granite", model_type="granite"))
    names = slow(loaded)
    assert any(name.startswith("transformers.models.granite") for name in names)
    assert any(name.startswith("transformers.generation") for name in names)


def healthy(url: str, tries: int = 600) -> bool:
    """Whether the server answers within a minute: it says its address just before it listens there."""
    for _ in range(tries):
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=60) as answer:
            return bool(json.load(answer) == {"status": "ok"})
        time.sleep(0.1)
    return False


def test_serve(packed: Path) -> None:
    server = start("serve", "--model", packed, "--port", 0, "--json")
    try:
        assert server.stdout is not None
        facts = ""
        while not facts.endswith("}\n"):
            facts += (line := server.stdout.readline())
            assert line, "the server ended before it was ready"
        url = json.loads(facts)["url"]
        assert healthy(url.replace("/v1", "/health"))
        body = json.dumps({"model": "packed", "prompt": "line 7", "max_tokens": 4}).encode()
        question = urllib.request.Request(f"{url}/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(question, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
    finally:
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
    loaded = json.loads(err.splitlines()[-1])
    assert not [name for name in loaded if name.split(".")[0] == "transformers"]
    assert not slow(loaded)
