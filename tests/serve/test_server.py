"""The server over HTTP with OpenAI's own client, and clients that misbehave."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from dfrot import reference
from dfrot.draft.load import open_engine
from dfrot.errors import ResourceError, UnsupportedError
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.settings import NgramSettings
from dfrot.serve import body as request_body
from dfrot.serve import protocol
from dfrot.serve.server import KEEP_ALIVE, bind, serve
from dfrot.serve.settings import ServeSettings

PROMPT = "def read(self, size):"


def client(server: Any, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": server.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **more})


def text(engine: Engine, prompt: str, count: int) -> str:
    return "".join(engine.start(TextRequest(engine.encode(prompt), count)))


def complete(server: Any, prompt: str = PROMPT, count: int = 16, **more: Any) -> Any:
    request = {"model": "reference", "prompt": prompt, "max_tokens": count, "temperature": 0, **more}
    return client(server).completions.create(**request)


def post(server: Any, body: bytes, kind: str = "application/json", path: str = "/v1/completions") -> Any:
    return httpx.post(server.url + path, content=body, headers={"content-type": kind}, timeout=60)


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def metric(server: Any, name: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def healthy(server: Any, engine: Engine) -> None:
    """The server answers, the answer is right, and nothing else is being served."""
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert complete(server).choices[0].text == text(engine, PROMPT, 16)
    wait(lambda: metric(server, "dfq_requests_running") == metric(server, "dfq_requests_waiting") == 0)


def test_a_streamed_conversation(server: Any, engine: Engine) -> None:
    messages: list[Any] = [{"role": "user", "content": "class Reader:"}]
    for _ in range(2):
        stream = client(server).chat.completions.create(
            model="reference", messages=messages, max_tokens=24, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        text_of_answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        ids = engine.encode_chat(messages)
        assert text_of_answer == "".join(engine.start(TextRequest(ids, 24)))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
        assert chunks[-1].usage.prompt_tokens == len(ids)
        assert chunks[-1].usage.completion_tokens == 24
        assert len({chunk.id for chunk in chunks}) == 1
        messages += [{"role": "assistant", "content": text_of_answer}, {"role": "user", "content": "def close(self):"}]


def test_whole_answers_models_and_metrics(server: Any, engine: Engine) -> None:
    answer = complete(server, stop=["\n\n"], count=60)
    expected_text = text(engine, PROMPT, 60)
    assert answer.choices[0].text == expected_text.split("\n\n")[0]
    assert answer.choices[0].finish_reason == "stop"
    assert complete(server, list(engine.encode(PROMPT))).choices[0].text == text(engine, PROMPT, 16)
    chat = client(server).chat.completions.create(
        model="reference", messages=[{"role": "user", "content": "x = 1"}], max_completion_tokens=5
    )
    assert chat.usage.completion_tokens <= 5
    assert [model.id for model in client(server).models.list()] == ["reference"]
    body = httpx.get(server.url + "/metrics")
    assert body.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert metric(server, "dfq_generated_tokens_total") > 5
    assert metric(server, 'dfq_requests_total{path="/v1/models",status="200"}') >= 1
    assert metric(server, 'dfq_first_token_seconds_bucket{le="+Inf"}') == metric(
        server, "dfq_first_token_seconds_count"
    )


def test_seeds_make_samples_repeat(server: Any) -> None:
    def sample(seed: int | None) -> str:
        return str(complete(server, temperature=1.0, seed=seed, count=12).choices[0].text)

    assert sample(5) == sample(5)
    assert len({sample(None) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"model": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 10_000, "application/json", 400),
        (b"{}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"model": "other", "prompt": "x"}', "application/json", 404),
        (b'{"model": "reference", "prompt": ""}', "application/json", 200),  # the BOS alone is a prompt
        (b'{"model": "reference", "prompt": [99999]}', "application/json", 400),
        (b'{"model": "reference", "prompt": "x", "max_tokens": 201}', "application/json", 400),
        (b'{"model": "reference", "prompt": "' + b"x " * 5000 + b'", "max_tokens": 9}', "application/json", 400),
        (b" " * 30_000, "application/json", 413),
        (b'{"model": "reference", "prompt": "x\\ud83d"}', "application/json", 400),
        (b'{"model": "reference", "prompt": "x", "stop": "\\UDE00"}', "application/json", 400),
        (b'{"model": "reference", "prompt": "x", "stop": "\\uDE00"}', "application/json", 400),
        (b'{"model": "reference", "prompt": "x\\ud83d\\ude00"}', "application/json", 200),
    ],
    ids=[
        "cut",
        "nan",
        "not-utf8",
        "deep",
        "empty",
        "form",
        "model",
        "no-text",
        "token",
        "tokens",
        "context",
        "large",
        "high-half",
        "no-escape",
        "low-half",
        "both-halves",
    ],
)
def test_malformed_and_oversized_bodies(server: Any, body: bytes, kind: str, status: int) -> None:
    answer = post(server, body, kind)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["message"]


def test_bodies_without_end_and_other_paths(server: Any, engine: Engine) -> None:
    def endless() -> Any:
        for _ in range(40_000):
            yield b" " * 1024

    try:
        status = httpx.post(
            server.url + "/v1/completions", content=endless(), headers={"content-type": "application/json"}
        ).status_code
    except httpx.TransportError:
        status = 413  # it was cut while it still wrote
    assert status == 413
    assert httpx.get(server.url + "/v1/completions").status_code == 405
    assert "/v1/models" in httpx.get(server.url + "/v2").json()["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        complete(server, model="gpt")
    healthy(server, engine)


def test_cancelled_requests_end(server: Any, engine: Engine) -> None:
    before = metric(server, 'dfq_generations_total{outcome="cancelled"}')
    request = {"model": "reference", "prompt": PROMPT, "max_tokens": 200, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=request) as answer:
        next(answer.iter_lines())
    with pytest.raises(openai.APITimeoutError):
        client(server, timeout=0.05).completions.create(
            model="reference", prompt=PROMPT, max_tokens=200, extra_body={"ignore_eos": True}
        )
    wait(lambda: metric(server, 'dfq_generations_total{outcome="cancelled"}') >= before + 1)
    healthy(server, engine)


def raw(server: Any) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_slow_clients_are_cut(engine: Engine, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.GuardedProtocol, "head_seconds", 0.3)
    monkeypatch.setattr(protocol.GuardedProtocol, "read_seconds", 0.3)
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.3)
    with start(engine) as server:
        with raw(server) as head:  # a head that never ends
            head.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
            assert head.recv(100) == b""
        with raw(server) as idle:  # nothing at all
            assert idle.recv(100) == b""
        with raw(server) as body:  # a body that never ends
            body.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            body.sendall(b"content-length: 100\r\n\r\n{")
            assert b" 408 " in body.recv(1000)
        with raw(server) as reader:  # asks for a lot and never reads
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(3000):
                try:
                    reader.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
                except OSError:
                    break  # it was cut
            wait(lambda: not server.server.server_state.connections)
        healthy(server, engine)


def test_the_queue_is_bounded(engine: Engine, start: Any) -> None:
    hold = threading.Event()

    class Held(Engine):
        def __init__(self) -> None:
            self.__dict__ = engine.__dict__

        def decode(self, ids: Any) -> str:
            hold.wait(20)
            return super().decode(ids)

    with start(Held(), parallel=1, queue=1) as server, ThreadPoolExecutor(4) as pool:
        first = [pool.submit(complete, server, count=2) for _ in range(2)]
        wait(lambda: metric(server, "dfq_requests_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            complete(server, count=2)
        assert caught.value.response.headers["retry-after"] == "1"
        hold.set()
        assert all(future.result().usage.completion_tokens == 2 for future in first)
        healthy(server, engine)


def test_a_time_limit_ends_a_request(engine: Engine, start: Any) -> None:
    with start(engine, timeout=0.05) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            complete(server, count=1000, extra_body={"ignore_eos": True})
        assert caught.value.status_code == 504


def test_keys_are_required(engine: Engine, start: Any) -> None:
    with start(engine, api_key="secret") as server:
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 401
        for wrong in ("none", "secret2", "é"):
            assert (
                httpx.get(
                    server.url + "/v1/models", headers=[(b"authorization", f"Bearer {wrong}".encode())]
                ).status_code
                == 401
            )
        with pytest.raises(openai.AuthenticationError):
            complete(server)
        assert client(server, api_key="secret").models.list().data
    with pytest.raises(UnsupportedError, match="`api_key`"):
        serve(engine, ServeSettings("x"), host="0.0.0.0")


def test_a_taken_port_is_one_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(ResourceError, match="cannot be bound"):
            bind("127.0.0.1", taken.getsockname()[1])


def test_a_draft_serves_the_same_text(engine: Engine, draft: Path, start: Any) -> None:
    with start(open_engine(reference.path(), draft, (2, 1, 0))) as server:
        assert complete(server).choices[0].text == text(engine, PROMPT, 16)
        assert metric(server, "dfq_draft_rounds_total") > 0


def test_look_up_drafting_serves_two_clients_the_same_text(engine: Engine, start: Any) -> None:
    prompts = [f"def {name}(self):\n    return self.{name}\n\n" * 3 for name in ("read", "write")]
    with start(open_engine(reference.path(), NgramSettings(), (4, 1, 0)), parallel=2) as server:

        def ask(prompt: str) -> str:
            with client(server) as own:
                request = {"model": "reference", "prompt": prompt, "max_tokens": 24, "temperature": 0}
                return str(own.completions.create(**request).choices[0].text)

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(ask, prompts)) == [text(engine, prompt, 24) for prompt in prompts]
        assert metric(server, "dfq_draft_accepted_total") > 0


def soak(server: Any, engine: Engine, clients: int, seconds: float, count: int) -> tuple[int, list[str]]:
    """Parallel clients that stream, wait and leave in the middle; requests served, and errors."""
    prompts = [f"def part{n}(self):" for n in range(clients)]
    expected = {prompt: text(engine, prompt, count) for prompt in prompts}
    errors, done, end = list[str](), [0] * clients, time.monotonic() + seconds

    def work(number: int) -> None:
        with client(server) as own:
            ask(own, number)

    def ask(own: openai.OpenAI, number: int) -> None:
        prompt = prompts[number]
        while time.monotonic() < end or done[number] < 3:
            request = {"model": "reference", "prompt": prompt, "max_tokens": count, "temperature": 0}
            if done[number] % 3 == 2:
                with own.completions.create(**request, stream=True) as leaving:
                    next(iter(leaving))
            elif done[number] % 3 == 1:
                answer_text = "".join(chunk.choices[0].text for chunk in own.completions.create(**request, stream=True))
                errors.extend([] if answer_text == expected[prompt] else [f"{prompt}: {answer_text!r}"])
            else:
                answer_text = own.completions.create(**request).choices[0].text
                errors.extend([] if answer_text == expected[prompt] else [f"{prompt}: {answer_text!r}"])
            done[number] += 1

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(work, number) for number in range(clients)]:
            try:
                future.result()
            except openai.OpenAIError as error:
                errors.append(repr(error))
    return sum(done), errors


def test_eight_parallel_clients(server: Any, engine: Engine) -> None:
    served, errors = soak(server, engine, 8, 0.5, 12)
    assert not errors
    assert served >= 24
    healthy(server, engine)


@pytest.mark.slow
def test_eight_parallel_clients_for_two_minutes_leak_nothing(engine: Engine, start: Any) -> None:
    with start(engine) as server:
        soak(server, engine, 8, 15, 24)  # buffers and caches reach their size
        before, files = metric(server, "dfq_resident_bytes"), len(list(Path("/proc/self/fd").iterdir()))
        served, errors = soak(server, engine, 8, 120, 24)
        assert not errors
        assert served >= 24  # how many depends on the machine; that all were right does not
        healthy(server, engine)
        after = metric(server, "dfq_resident_bytes")
        assert after < before * 1.05 + (16 << 20), f"{before} -> {after} bytes after {served} requests"
        wait(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files + 2, KEEP_ALIVE + 15)


def test_the_command_serves_and_ends_gracefully() -> None:
    code = "from dfrot_cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "serve", "--model", "reference", "--port", "0", "--json"]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        output = ""
        while not output.endswith("}\n"):
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            output += line
        url = json.loads(output)["url"]
        wait(lambda: _answers(url), 60)
        body = json.dumps(
            {"model": "reference", "prompt": PROMPT, "max_tokens": 300, "stream": True, "ignore_eos": True}
        )
        with httpx.stream(
            "POST", url + "/completions", content=body, headers={"content-type": "application/json"}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]", "what was running is finished first"
        assert child.wait(60) == 0
    finally:
        child.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/models", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
