"""Several answers, log-probabilities, stop tokens and single models, with OpenAI's client."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch

from dfrot import reference
from dfrot.data.tokenizer import TokenBytes
from dfrot.draft.load import open_engine
from dfrot.generation.engine import Engine, TextRequest
from dfrot.runtime.load import load_model

PROMPT = "def read(self, size):"


def complete(server: Any, **more: Any) -> Any:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
    request = {"model": "reference", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **more}
    return client.completions.create(**request)


def chat(server: Any, **more: Any) -> Any:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
    request = {"model": "reference", "messages": [{"role": "user", "content": "x = 1"}], "max_tokens": 12, **more}
    return client.chat.completions.create(**request)


def test_several_choices_have_seeds_of_their_own(server: Any) -> None:
    answer = chat(server, n=3, seed=11)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    assert texts == [chat(server, seed=11 + number).choices[0].message.content for number in range(3)]
    assert answer.usage.completion_tokens > chat(server, seed=11).usage.completion_tokens
    assert answer.usage.prompt_tokens == chat(server, seed=11).usage.prompt_tokens
    streamed = ["", "", ""]
    finished = set()
    for chunk in chat(server, n=3, seed=11, stream=True, stream_options={"include_obfuscation": False}):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.delta.content or ""
        finished |= {choice.index} if choice.finish_reason else set()
    assert streamed == texts
    assert finished == {0, 1, 2}


def test_logprobs_are_the_models(server: Any, engine: Engine) -> None:
    answer = complete(server, logprobs=3).choices[0]
    logprobs = answer.logprobs
    assert "".join(logprobs.tokens) == answer.text
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:n])) for n in range(12)]
    ids = engine.encode(PROMPT)
    generation = engine.start(TextRequest(ids, 12))
    list(generation)
    model = load_model(reference.path(), dtype=torch.bfloat16)
    with torch.inference_mode():
        logits = model(torch.tensor([[*ids, *generation.out.tokens]])).logits[0].float()
    expected = logits.log_softmax(-1)[len(ids) - 1 : -1]
    for number, token in enumerate(generation.out.tokens):
        assert logprobs.token_logprobs[number] == pytest.approx(float(expected[number, token]), abs=0.1)  # bfloat16
        assert max(logprobs.top_logprobs[number].values()) == pytest.approx(logprobs.token_logprobs[number])
        assert len(logprobs.top_logprobs[number]) <= 3  # several tokens may be written alike
    assert complete(server).choices[0].logprobs is None


def test_logprobs_of_a_chat_whole_and_streamed(server: Any) -> None:
    content = chat(server, logprobs=True, top_logprobs=2, temperature=0).choices[0]
    entries = content.logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == content.message.content
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    assert all(math.exp(entry.logprob) <= 1 for entry in entries)
    streamed: list[Any] = []
    for chunk in chat(server, logprobs=True, temperature=0, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert streamed[0].top_logprobs == []


def test_logprobs_end_with_the_text(server: Any) -> None:
    whole = complete(server, logprobs=0, max_tokens=30).choices[0]
    stop = "".join(whole.logprobs.tokens[6:8])
    cut = complete(server, logprobs=0, max_tokens=30, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert "".join(cut.logprobs.tokens) == cut.text


def test_a_draft_serves_them_too(draft: Path, start: Any, engine: Engine) -> None:
    with start(open_engine(reference.path(), draft, (2, 1, 0))) as server:
        answer = complete(server, logprobs=1).choices[0]
        assert "".join(answer.logprobs.tokens) == answer.text == complete(server).choices[0].text


def test_stop_tokens_end_the_text(server: Any, engine: Engine) -> None:
    generation = engine.start(TextRequest(engine.encode(PROMPT), 12))
    list(generation)
    token = generation.out.tokens[4]
    first = generation.out.tokens.index(token)
    for more in ({}, {"ignore_eos": True}):
        answer = complete(server, extra_body={"stop_token_ids": [token], **more})
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text == engine.decode(generation.out.tokens[:first])
    with pytest.raises(openai.BadRequestError, match="stop token"):
        complete(server, extra_body={"stop_token_ids": [1 << 30]})


def test_a_model_by_its_name(engine: Engine, start: Any) -> None:
    with start(engine, name="org/name") as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("org/name").id == "org/name"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt")
        assert httpx.get(server.url + "/v1/models/org/name").json()["max_model_len"] == engine.context


def test_more_choices_than_the_queue_takes(engine: Engine, start: Any) -> None:
    with start(engine, parallel=1, queue=1) as server:
        with pytest.raises(openai.BadRequestError, match="this server takes 2 at a time"):
            chat(server, n=3)
        assert chat(server).choices


def test_bytes_of_tokens(engine: Engine) -> None:
    text = "naïve — 雪 \t end"
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(TokenBytes(engine.tokenizer), ids)).decode() == text
    begin = engine.tokenizer.special_tokens_map["bos_token"]
    assert TokenBytes(engine.tokenizer)(engine.tokenizer.backend_tokenizer.token_to_id(begin)) == begin.encode()
