"""Downloads from a hub that this file serves on a local port: progress, resuming, revisions, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WEIGHTS = bytes(range(256)) * 90_000  # 23 MB; the client reads pieces of 10 MiB
TEMPLATE = "additional_chat_templates/tools.jinja"
UNWANTED = ("pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors", "onnx/config.json")
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", TEMPLATE: b"{{ tools }}"}
FILES |= dict.fromkeys(UNWANTED, b"not this")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client uses. cut: bytes of the weights after which the connection ends,
    once or always."""

    cut: int | None = None
    once = False
    fetched: ClassVar[list[str]] = []
    ranges: ClassVar[list[str]] = []

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _json(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        if "gated" in self.path:
            return self._json(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="ask first")
        if "missing" in self.path:
            return self._json(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        if path[:2] == ["api", "models"]:
            revision = path[5] if len(path) > 5 else "main"
            commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
            if commit is None:
                return self._json(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
            if path[4:5] == ["tree"]:
                return self._json(
                    200, [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in FILES.items()]
                )
            files = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
            return self._json(200, {"id": "org/name", "sha": commit, "siblings": files, "gated": False})
        name, commit = "/".join(path[4:]), path[3]
        if name not in FILES:
            return self._json(404, {"error": "none"}, X_Error_Code="EntryNotFound")
        content = FILES[name]
        begin = 0
        if wanted := self.headers.get("Range"):
            Hub.ranges.append(wanted)
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        headers = {"X-Repo-Commit": COMMITS.get(commit, commit), "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        headers["Content-Length"] = str(len(content) - begin)
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        Hub.fetched.append(name)
        if name == "model.safetensors" and Hub.cut is not None:
            self.wfile.write(content[begin : Hub.cut])
            self.close_connection = True
            Hub.cut = None if Hub.once else Hub.cut
            return None
        self.wfile.write(content[begin:])
        return None


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.cut, Hub.once, Hub.ranges, Hub.fetched = None, False, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CODE = """
import json, sys
from dfrot.errors import DfqError
from dfrot.hub_download import download
calls = []
hub_id, _, revision = sys.argv[1].partition("@")
try:
    folder = download(sys.argv[1], hub_id, revision or None, lambda *call: calls.append(call))
    print(json.dumps({"folder": str(folder), "calls": calls}))
except DfqError as error:
    print(json.dumps({"error": str(error)}))
"""


def resolve(model: str, cache: Path, endpoint: str, **more: str) -> Any:
    """What `download` gives in a process of its own: the client reads its environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **more}
    ran = subprocess.run(
        [sys.executable, "-c", CODE, model], capture_output=True, text=True, env=environment, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "", "the library prints nothing"
    return json.loads(ran.stdout)


def test_a_download_reports_and_is_found_again(hub: str, tmp_path: Path) -> None:
    first = resolve("org/name@v1", tmp_path, hub)
    folder = Path(first["folder"])
    assert folder.name == COMMITS["v1"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / TEMPLATE).read_bytes() == FILES[TEMPLATE]
    assert not [name for name in UNWANTED if (folder / name).exists()]
    labels, done, totals = zip(*first["calls"])
    assert set(labels) == {"download org/name@v1"}
    assert list(done) == sorted(done)
    assert (done[-1], totals[-1]) == (23, 24)
    again = resolve("org/name@v1", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again == {"folder": str(folder), "calls": []}


def test_a_dropped_connection_is_taken_up_again(hub: str, tmp_path: Path) -> None:
    Hub.cut, Hub.once = 22_000_000, True
    folder = Path(resolve("org/name", tmp_path, hub)["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert Hub.ranges == ["bytes=20971520-"]


def test_the_next_run_fetches_what_is_missing(hub: str, tmp_path: Path) -> None:
    Hub.cut = 4_000_000
    assert "cannot be fetched (peer closed" in resolve("org/name", tmp_path, hub)["error"]
    Hub.cut, Hub.fetched = None, []
    folder = Path(resolve("org/name", tmp_path, hub)["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert Hub.fetched == ["model.safetensors"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/gated", "org/gated: access is restricted; accept its licence on its hub page and set HF_TOKEN"),
        ("org/missing", "org/missing: the hub does not show it"),
        ("org/name@v9", "org/name@v9: the hub does not have this revision"),
    ],
)
def test_refusals_are_one_line(hub: str, tmp_path: Path, model: str, message: str) -> None:
    error = resolve(model, tmp_path, hub)["error"]
    assert error.startswith(message)
    assert "\n" not in error


def test_offline_is_named(tmp_path: Path) -> None:
    error = resolve("org/name", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")["error"]
    assert "cannot be fetched (HF_HUB_OFFLINE is set)" in error
