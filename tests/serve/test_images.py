"""Images in messages: data: URIs on a VLM, and everything else refused by its field."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from dfrot.arch import open_described
from dfrot.data import shapes
from dfrot.data.conversation_rows import MAX_IMAGES
from dfrot.draft.load import open_engine
from dfrot.draft.models.build import build, config_for
from dfrot.draft.store import save_draft
from dfrot.generation.engine import Engine
from dfrot.reference import build_vlm
from dfrot.serve.api import parse_request
from dfrot.serve.errors import ApiError
from dfrot.vision.fingerprint import checkpoint_fingerprint

Image = pytest.importorskip("PIL.Image")
TEXT = {"type": "text", "text": "What is in the image?"}


def uri(picture: torch.Tensor, kind: str = "png") -> str:
    out = io.BytesIO()
    Image.fromarray(picture.numpy()).save(out, kind)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def part(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def body(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": list(parts)}]}


def test_images_keep_their_places_in_the_message() -> None:
    image = uri(shapes.sample(0).picture)
    call = parse_request("chat", body(part(image), TEXT, part(image, detail="auto")))
    assert call.prompt[0]["content"] == [{"type": "image"}, TEXT, {"type": "image"}]
    assert [data[:4] for data in call.images] == [b"\x89PNG"] * 2
    assert parse_request("chat", body(TEXT, TEXT)).prompt[0]["content"] == 2 * TEXT["text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([part("http://example.com/a.png")], "fetches nothing"),
        ([part("https://example.com/a.png")], "fetches nothing"),
        ([part("file:///etc/passwd")], "fetches nothing"),
        ([part("data:text/html;base64,AAAA")], "fetches nothing"),
        ([part("data:image/png,plain")], "fetches nothing"),
        ([part("data:image/png;base64,A A A")], "not base64"),
        ([part("data:image/png;base64,AAA")], "not base64"),
        ([part("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9")], "not base64"),
        ([part(3)], "image_url"),
        ([part("data:image/png;base64,AAAA", detail="high")], "detail"),
        ([part("data:image/png;base64,AAAA", size=3)], "size"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}], "image_url"),
        ([{"type": "input_audio", "input_audio": {}}], "input_audio is not supported"),
        ([part("data:image/png;base64,AAAA")] * (MAX_IMAGES + 1), "at most"),
    ],
)
def test_parts_that_are_refused(content: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        parse_request("chat", body(*content))
    assert caught.value.status == 400
    assert len(str(caught.value)) < 200


def test_only_users_may_send_images() -> None:
    with pytest.raises(ApiError, match="only text is"):
        parse_request("chat", body(part("data:image/png;base64,AAAA"), role="assistant"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vlm") / "reference-vlm"
    path.mkdir()
    build_vlm.write_model(path)
    return path


@pytest.fixture(scope="module")
def vlm_server(folder: Path, start: Any) -> Iterator[Any]:
    with start(Engine(folder), name="vlm", max_body=100_000) as server:
        yield server


def ask(server: Any, *parts: Any, model: str = "vlm", **more: Any) -> Any:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
    messages: Any = [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=40, temperature=0, **more)


def test_a_conversation_about_images(vlm_server: Any) -> None:
    right = 0
    samples = [shapes.sample(shapes.HELD_OUT + n) for n in range(8)]
    for sample in samples:
        answer = ask(vlm_server, part(uri(sample.picture)), {"type": "text", "text": sample.question})
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens > 16
        right += answer.choices[0].message.content == sample.answer
    assert right >= 4
    last = samples[-1]
    pieces = ask(vlm_server, part(uri(last.picture)), {"type": "text", "text": last.question}, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert streamed == answer.choices[0].message.content
    assert ask(vlm_server, {"type": "text", "text": "x = 1"}).usage.prompt_tokens < 16, "text alone is served too"


def test_a_draft_changes_nothing(vlm_server: Any, folder: Path, tmp_path: Path, start: Any) -> None:
    _, arch = open_described(folder)
    torch.manual_seed(0)
    save_draft(tmp_path, build(config_for(arch, "dream", target_fingerprint=checkpoint_fingerprint(folder))))
    parts = [(part(uri(shapes.sample(seed).picture)), TEXT) for seed in (3, 4)]
    with start(open_engine(folder, tmp_path, (3, 1, 0)), name="vlm", max_body=100_000) as drafted:
        for content in parts:
            texts = [ask(server, *content).choices[0].message.content for server in (vlm_server, drafted)]
            assert texts[0] == texts[1]
        assert drafted.lines[0]["new"] > 5


def test_broken_images_leave_the_server_healthy(vlm_server: Any, server: Any) -> None:
    image = uri(shapes.sample(0).picture)
    head, data = image.split(",")
    cut = f"{head},{data[: len(data) // 2 // 4 * 4]}"
    for parts, message in (
        ((part(cut), TEXT), "image 0: is not a whole"),
        ((part(image), part("data:image/png;base64,AAAA"), TEXT), "image 1: is not a whole"),
        ((part(image), {"type": "text", "text": "<|image|>?"}), "must not name the token"),
        (({"type": "text", "text": "<|image|>?"},), "must not name the token"),
        ((part(uri(torch.randint(0, 256, (200, 200, 3), dtype=torch.uint8))), TEXT), "larger than 100000 bytes"),
    ):
        with pytest.raises(openai.APIStatusError, match=message):
            ask(vlm_server, *parts)
    with pytest.raises(openai.BadRequestError, match="takes no images"):
        ask(server, part(image), TEXT, model="reference")
    assert ask(vlm_server, part(image), TEXT).choices[0].message.content
