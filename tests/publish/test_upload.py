"""Uploads to a hub that this file serves on a local port: what arrives, resuming, refusals in one line."""

from __future__ import annotations

import base64
import hashlib
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

COMMIT = "c" * 40
TOKEN = "hf_test"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface for uploads as its client uses. fail: (part of a path, status) to answer with."""

    fail: tuple[str, int] | None = None
    stored: ClassVar[dict[str, bytes]] = {}  # large files by digest
    put: ClassVar[list[str]] = []  # digests in the order of arrival
    files: ClassVar[dict[str, bytes]] = {}  # of the last commit, by path
    created: ClassVar[list[dict[str, Any]]] = []
    branches: ClassVar[list[str]] = []
    revisions: ClassVar[list[str]] = []

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _json(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refused(self, body: bytes) -> bool:
        if self.fail is None or self.fail[0] not in self.path:
            return False
        status = self.fail[1]
        headers = {"X_Error_Code": "RepoNotFound"} if status == 404 else {}
        self._json(status, {"error": f"answer {status}"}, **headers)
        return True

    def do_GET(self) -> None:
        if not self._refused(b""):
            self._json(404, {"error": "none"}, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        body = self._body()
        if self._refused(body):
            return
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        Hub.stored[digest] = body
        Hub.put.append(digest)
        self._json(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused(body):
            return None
        path = self.path.partition("?")[0]
        host = f"http://{self.headers['Host']}"
        if path.startswith("/api/"):
            assert self.headers["Authorization"] == f"Bearer {TOKEN}" or path == "/api/validate-yaml"
        if path == "/api/repos/create":
            Hub.created.append(json.loads(body))
            return self._json(200, {"url": f"{host}/org/name", "id": "1", "name": "org/name"})
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if path.startswith("/api/models/org/name/branch/"):
            Hub.branches.append(path.rpartition("/")[2])
            return self._json(200, {})
        if path.startswith("/api/models/org/name/preupload/"):
            rows = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json(200, {"files": rows})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [self._action(host, item) for item in json.loads(body)["objects"]]
            return self._json(200, {"transfer": "basic", "objects": objects})
        assert path.startswith("/api/models/org/name/commit/"), path
        Hub.revisions.append(path.rpartition("/")[2])
        Hub.files.clear()
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                Hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                Hub.files[entry["value"]["path"]] = Hub.stored[entry["value"]["oid"]]
        url = f"{host}/org/name/commit/{COMMIT}"
        return self._json(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _action(self, host: str, item: dict[str, Any]) -> dict[str, Any]:
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] in Hub.stored:  # it has arrived before
            return entry
        return entry | {"actions": {"upload": {"href": f"{host}/store/{item['oid']}", "header": {}}}}


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.fail = None
    for kept in (Hub.stored, Hub.put, Hub.files, Hub.created, Hub.branches, Hub.revisions):
        kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CODE = """
import json, sys
from pathlib import Path
from dfrot.errors import DfqError
from dfrot.publish.run import publish
from dfrot.publish.settings import PublishSettings
more = json.loads(sys.argv[3])
settings = PublishSettings("org/name", base="org/base", base_folder=Path(sys.argv[2]), **more)
try:
    print(json.dumps(publish(Path(sys.argv[1]), settings)))
except DfqError as error:
    print(json.dumps({"error": str(error), "type": type(error).__name__, "code": error.exit_code}))
"""


def publish(folder: Path, base: Path, endpoint: str, token: str | None = TOKEN, **more: Any) -> Any:
    """What `publish` gives in a process of its own: the client reads its environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(base.parent / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    environment |= {} if token is None else {"HF_TOKEN": token}
    arguments = [sys.executable, "-c", CODE, str(folder), str(base), json.dumps(more)]
    ran = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "", "the library prints nothing"
    return json.loads(ran.stdout)


def test_what_arrives(hub: str, folder: Path, base: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    result = publish(folder, base, hub, private=True)
    assert (result["commit"], result["url"]) == (COMMIT, f"{hub}/org/name")
    assert set(Hub.files) == set(result["files"])
    assert "notes.txt" not in Hub.files
    assert Hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert Hub.files["README.md"].decode() == result["card"]
    assert b"base_model: org/base\n" in Hub.files["README.md"]
    (made,) = Hub.created
    assert (made["name"], made["organization"]) == ("name", "org")
    assert made.get("private") or made.get("visibility") == "private"  # older and newer clients
    assert (Hub.branches, Hub.revisions) == ([], ["main"])
    assert not (folder / "README.md").exists()


def test_a_branch(hub: str, folder: Path, base: Path) -> None:
    publish(folder, base, hub, revision="w4")
    assert (Hub.branches, Hub.revisions) == (["w4"], ["w4"])


def test_an_interrupted_upload_goes_on(hub: str, folder: Path, base: Path) -> None:
    Hub.fail = ("/commit/", 500)
    error = publish(folder, base, hub)
    assert error["error"].startswith("org/name: the hub fails (500); give the command again")
    assert (error["type"], error["code"]) == ("ResourceError", 2)
    assert len(Hub.put) == 1
    Hub.fail = None
    assert publish(folder, base, hub)["commit"] == COMMIT
    assert len(Hub.put) == 1, "what has arrived is not sent twice"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "the hub does not know this token"),
        (403, "this token may not write to org"),
        (404, "the hub does not show it to this token"),
        (400, "the hub refuses what was sent"),
        (503, "the hub fails (503)"),
    ],
)
def test_refusals_are_one_line(hub: str, folder: Path, base: Path, status: int, expected: str) -> None:
    Hub.fail = ("/api/repos/create", status)
    error = publish(folder, base, hub)["error"]
    assert error.startswith(f"org/name: {expected}")
    assert "\n" not in error


def test_without_a_token(hub: str, folder: Path, base: Path) -> None:
    Hub.fail = ("/api/repos/create", 401)
    assert "set HF_TOKEN" in publish(folder, base, hub, token=None)["error"]


def test_no_hub(folder: Path, base: Path) -> None:
    error = publish(folder, base, "http://127.0.0.1:9")["error"]
    assert error.startswith("org/name: the upload stopped (")
    assert "\n" not in error


def test_a_failed_check_sends_nothing(hub: str, folder: Path, base: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    error = publish(folder, base, hub)
    assert error["error"].startswith("chat_template.jinja: is missing")
    assert "`force`" in error["error"]
    assert not Hub.created
    assert publish(folder, base, hub, force=True)["commit"] == COMMIT


def test_a_token_in_a_file_is_not_forced(hub: str, folder: Path, base: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"token": "hf_" + "a" * 34}))
    error = publish(folder, base, hub, force=True)["error"]
    assert "access token" in error
    assert "`force`" not in error
    assert not Hub.created
