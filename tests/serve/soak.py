"""A server under faults: clients that vanish, huge and malformed bodies, streams that are cancelled.

    python tests/serve/soak.py MODEL SECONDS

starts `dfq serve` on MODEL, lets clients do all of that beside ordinary requests, whose answers are compared, and
prints one JSON document: what was sent, and resident memory and open files of the server after a tenth of the time,
and at the end. Exits with 1 where an answer was wrong or one of both grew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from dfrot.bench.serve.client import Client
from dfrot.bench.serve.workload import WORDS

ORDINARY, FAULTY = 6, 4  # clients
PROMPTS = 12
GROWTH = 1.05  # of resident memory, beside SLACK
SLACK = 24 << 20
FILES = 4  # more open files than before, at most: connections that are just being closed


class Soak:
    """The clients of one server, and what they did."""

    def __init__(self, url: str, end: float) -> None:
        self.client, self.end = Client(url + "/v1", None, 120.0), end
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.model = ""
        self.expected: dict[str, str] = {}

    async def run(self) -> None:
        self.model = await self.client.first_model()
        source = random.Random(7)
        for _ in range(PROMPTS):
            prompt = " ".join(source.choices(WORDS, k=source.randint(3, 200)))
            self.expected[prompt] = await self._text(prompt)
        clients = [self._ordinary(random.Random(n)) for n in range(ORDINARY)]
        await asyncio.gather(*clients, *(self._faulty(random.Random(100 + n)) for n in range(FAULTY)))

    async def _text(self, prompt: str) -> str:
        status, body = await self.client.whole("POST", "/completions", self._body(prompt, 40))
        return str(json.loads(body)["choices"][0]["text"]) if status == 200 else f"status {status}"

    def _body(self, prompt: str, new: int, **more: Any) -> bytes:
        body = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, **more}
        return json.dumps(body).encode()

    async def _ordinary(self, source: random.Random) -> None:
        while time.monotonic() < self.end:
            prompt = source.choice(list(self.expected))
            text = await self._text(prompt)
            self.done["answers"] += 1
            if text != self.expected[prompt] and len(self.wrong) < 5:
                self.wrong.append(f"{text[:60]!r} in place of {self.expected[prompt][:60]!r}")

    async def _faulty(self, source: random.Random) -> None:
        faults = [self._vanish, self._leave_a_stream, self._malformed, self._huge, self._half_a_body, self._garbage]
        while time.monotonic() < self.end:
            fault = source.choice(faults)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):  # the server cut it
                await asyncio.wait_for(fault(source), 60)
            self.done[fault.__name__.strip("_")] += 1

    async def _send(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.client.host, self.client.port)
        writer.write(data)
        return reader, writer

    def _head(self, length: int) -> bytes:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n"
        return f"{head}content-type: application/json\r\n\r\n".encode()

    async def _vanish(self, source: random.Random) -> None:
        """Ask for a long answer, and leave before it comes."""
        body = self._body("leaving " * source.randint(1, 300), 400)
        _, writer = await self._send(self._head(len(body)) + body)
        await asyncio.sleep(source.uniform(0, 0.5))
        writer.transport.abort()

    async def _leave_a_stream(self, source: random.Random) -> None:
        body = self._body("streaming", 400, stream=True, n=source.choice([1, 3]))
        reader, writer = await self._send(self._head(len(body)) + body)
        for _ in range(source.randint(1, 20)):
            await reader.readline()
        writer.transport.abort()

    async def _malformed(self, source: random.Random) -> None:
        body = source.choice([b"{", b"[" * 5000, b'{"model": NaN}', b"\xff\xfe", b'{"prompt": 3}', b"null"])
        reader, writer = await self._send(self._head(len(body)) + body)
        assert b" 400 " in await reader.readline()
        writer.close()

    async def _huge(self, source: random.Random) -> None:
        """A body that is far too large, or one that is nearly so and no request."""
        size = source.choice([31 << 20, 34 << 20, 200 << 20])
        reader, writer = await self._send(self._head(size))
        try:
            for _ in range(size >> 16):
                writer.write(b" " * (1 << 16))
                await writer.drain()
            await reader.readline()
        finally:
            writer.transport.abort()

    async def _half_a_body(self, source: random.Random) -> None:
        _, writer = await self._send(self._head(1000) + b'{"model"')
        await asyncio.sleep(source.uniform(0, 1))
        writer.transport.abort()

    async def _garbage(self, source: random.Random) -> None:
        reader, writer = await self._send(source.randbytes(3000))
        await reader.read(1000)
        writer.close()


def usage(pid: int) -> dict[str, int]:
    """Resident bytes and open files of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return {"resident": resident, "files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


def soak(model: str, seconds: float) -> dict[str, Any]:
    """Serve a model under faults for so long; see the module."""
    code = "from dfrot_cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", model, "--port", "0", "--json", "--parallel", "8"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        output = ""
        while not output.endswith("}\n"):
            output += server.stdout.readline()
        started = json.loads(output)
        url = started["url"].removesuffix("/v1")
        end = time.monotonic() + seconds
        warm_up = Soak(url, time.monotonic() + max(seconds / 10, 15))
        asyncio.run(warm_up.run())
        before = usage(server.pid)
        test = Soak(url, end)
        asyncio.run(test.run())
        wait = time.monotonic() + 90
        while usage(server.pid)["files"] > before["files"] + FILES and time.monotonic() < wait:
            time.sleep(1)  # connections that the server has not closed yet
        after = usage(server.pid)
        with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        outcomes = [
            line for line in lines if line.startswith(("dfq_generations_total", "dfq_cache_bytes", "dfq_batch"))
        ]
        result = {"batching": started["batching"], "sent": dict(test.done), "wrong": warm_up.wrong + test.wrong}
        return {**result, "before": before, "after": after, "alive": server.poll() is None, "metrics": outcomes}
    finally:
        server.terminate()
        server.wait(60)


def failures(result: dict[str, Any]) -> list[str]:
    """What a soak shows that it must not."""
    before, after = result["before"], result["after"]
    found = [*result["wrong"]]
    if after["resident"] > before["resident"] * GROWTH + SLACK:
        found.append(f"resident memory grew from {before['resident']} to {after['resident']}")
    if after["files"] > before["files"] + FILES:
        found.append(f"open files grew from {before['files']} to {after['files']}")
    return found if result["alive"] else [*found, "the server ended"]


if __name__ == "__main__":
    outcome = soak(sys.argv[1], float(sys.argv[2]))
    print(json.dumps({**outcome, "failures": failures(outcome)}, indent=1))
    raise SystemExit(1 if failures(outcome) else 0)
