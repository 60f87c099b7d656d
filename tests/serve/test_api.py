"""Bodies of requests: accepted fields, and refusals that name the field."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dfrot.serve.api import parse_request
from dfrot.serve.errors import ApiError

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def test_defaults_are_openais() -> None:
    call = parse_request("chat", CHAT)
    assert (call.temperature, call.top_p, call.max_tokens, call.stream, call.seed) == (1.0, 1.0, None, False, None)
    assert parse_request("completion", TEXT).max_tokens == 16


def test_all_fields_are_read() -> None:
    body = {**CHAT, "max_completion_tokens": 5, "stop": "x", "seed": 3, "temperature": 0, "top_k": -1, "user": "me"}
    body |= {
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "tools": [],
        "logprobs": False,
        "stop_token_ids": [7],
    }
    call = parse_request("chat", body)
    assert (call.max_tokens, call.stops, call.seed, call.temperature, call.top_k) == (5, ("x",), 3, 0.0, 0)
    assert call.stream
    assert call.include_usage
    assert (call.choices, call.tools, call.logprobs, call.stop_tokens) == (1, (), None, (7,))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "c", "name": "me"}]
    call = parse_request("chat", {**CHAT, "messages": messages})
    assert call.prompt == [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}]
    assert parse_request("completion", {**TEXT, "prompt": [[1, 2]]}).prompt == (1, 2)
    assert parse_request("completion", {**TEXT, "prompt": ["x"]}).prompt == "x"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": 3}, "model"),
        ({"model": None}, "model"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"more": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": 1}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "ask for JSON in the prompt"),
        ({"functions": [{}]}, "use tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 3}}]}, "parameters"),
        ({"tools": {}}, "tools"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"stop_token_ids": ["3"]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize"),
        ({"chat_template_kwargs": {"a b": True}}, "a b"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "["}}]}]}, "JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "3"}}]}]}, "JSON"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tool_calls"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request("chat", {**CHAT, **change}).sampling(3, 1000)
    assert caught.value.status == 400
    assert field in str(caught.value), str(caught.value)


@pytest.mark.parametrize("field", ["tools", "chat_template_kwargs", "top_logprobs"])
def test_completions_have_no_conversation(field: str) -> None:
    with pytest.raises(ApiError, match=f"{field}: is not supported in completions"):
        parse_request("completion", {**TEXT, field: 3})


def test_conversations_with_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "north"}'}}
    messages = [
        {"role": "user", "content": "north?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "name": "look_up", "content": "up"},
    ]
    request = parse_request("chat", {**CHAT, "messages": messages, "tools": [TOOL], "tool_choice": "auto"})
    assert request.tools == (TOOL,)
    assert request.prompt[1]["content"] == ""
    assert request.prompt[1]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": {"word": "north"}}
    assert request.prompt[2] == {"role": "tool", "tool_call_id": "c1", "name": "look_up", "content": "up"}
    assert parse_request("chat", {**CHAT, "tools": [TOOL], "tool_choice": "none"}).tools == ()


@pytest.mark.parametrize("prompt", [None, 3, [], ["a", "b"], [1, "a"], [True], {"a": 1}])
def test_prompts_are_one_text_or_its_ids(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt"):
        parse_request("completion", {**TEXT, "prompt": prompt})


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(ApiError, match="JSON object"):
        parse_request("chat", body)


def test_penalties_count_new_tokens_and_bias_adds() -> None:
    body = {**TEXT, "frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {"3": 2}, "temperature": 0}
    sampling = parse_request("completion", body).sampling(2, 5)
    scores = sampling.processed(torch.zeros(5), [4, 4, 1, 1, 2])
    assert scores.tolist() == [0.0, -1.25, -0.75, 2.0, 0.0]
