"""Tools through the chat template, and calls in what the model writes, with OpenAI's client."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from dfrot.generation.engine import Engine, Generation, TextRequest
from dfrot.serve.tools import ToolCallReader

HERMES = """{% if tools %}Call as <tool_call>{"name": ..., "arguments": ...}</tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% if thinking %}think
{% endif %}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "nörth"}}\n</tool_call>'
NO_OBJECT = '<tool_call>{"name": "x", "arguments": 1}</tool_call>'
MESSAGES: Any = [{"role": "user", "content": "Where is north?"}]


class Scripted(Engine):
    """The reference model with another template, which always writes `script`. prompts: what it was asked."""

    def __init__(self, engine: Engine, script: str, template: str = HERMES) -> None:
        self.__dict__ = dict(engine.__dict__)
        self.tokenizer = copy.deepcopy(engine.tokenizer)
        self.tokenizer.chat_template = template
        self.script, self.prompts = script, list[str]()

    def start(self, request: TextRequest) -> Generation:
        self.prompts.append(self.decode(request.prompt))
        return ScriptedGeneration(self, request)


class ScriptedGeneration(Generation):
    def __iter__(self) -> Iterator[str]:
        script = self.engine.script  # type: ignore[attr-defined]
        for begin in range(0, len(script), 3):
            self.out.tokens.append(5)
            yield script[begin : begin + 3]
        self.finish = "stop"


def ask(server: Any, **more: Any) -> Any:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
    return client.chat.completions.create(**{"model": "reference", "messages": MESSAGES, "tools": TOOLS, **more})


def test_a_call_is_parsed_whole_and_streamed(engine: Engine, start: Any) -> None:
    scripted = Scripted(engine, f"I look. {CALL}{CALL}")
    with start(scripted) as server:
        choice = ask(server).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look. ")
        assert [call.function.name for call in choice.message.tool_calls] == ["look_up"] * 2
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"word": "nörth"}
        assert len({call.id for call in choice.message.tool_calls}) == 2
        chunks = list(ask(server, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert text == "I look. "
        assert [(call.index, call.function.name) for call in calls] == [(0, "look_up"), (1, "look_up")]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        # the whole conversation goes back through the template
        answer = choice.message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "up"}
        assert ask(server, messages=[*MESSAGES, answer, result]).choices[0].finish_reason == "tool_calls"
    assert '"name": "look_up"' in scripted.prompts[0]
    assert '{"name": "look_up", "arguments": {"word": "n' in scripted.prompts[-1]
    assert "[tool] up" in scripted.prompts[-1]


def test_without_tools_the_same_text_is_text(engine: Engine, start: Any) -> None:
    scripted = Scripted(engine, CALL)
    with start(scripted) as server:
        assert ask(server, tools=[]).choices[0].message.content == CALL
        assert ask(server, tool_choice="none").choices[0].message.content == CALL
    assert "look_up" not in scripted.prompts[-1]


def test_other_formats_stay_text(engine: Engine, start: Any) -> None:
    with start(Scripted(engine, CALL, "{{ tools | tojson }}{{ messages[0].content }}")) as server:
        choice = ask(server).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", CALL)


def test_templates_without_tools_are_refused(engine: Engine, start: Any) -> None:
    with start(Scripted(engine, CALL, "{{ messages[0].content }}")) as server:
        with pytest.raises(openai.BadRequestError, match="chat template takes none") as caught:
            ask(server)
        assert caught.value.param == "tools"


def test_variables_of_the_template(engine: Engine, start: Any) -> None:
    scripted = Scripted(engine, "yes")
    with start(scripted) as server:
        ask(server, tools=[], extra_body={"chat_template_kwargs": {"thinking": True}})
        ask(server, tools=[])
        body = {"model": "reference", "messages": MESSAGES, "chat_template_kwargs": {"chat_template": "x"}}
        assert httpx.post(server.url + "/v1/chat/completions", json=body).status_code == 400
    assert ["think" in prompt for prompt in scripted.prompts] == [True, False]


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("plain < text <tool", "plain < text <tool", []),
        (CALL, "", ["look_up"]),
        (CALL[: -len("</tool_call>")], "", ["look_up"]),
        (f"a{CALL}b{CALL}", "ab", ["look_up"] * 2),
        ("<tool_call>no JSON</tool_call> end", "<tool_call>no JSON</tool_call> end", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        (NO_OBJECT, NO_OBJECT, []),
        (f"<tool_call>broken</tool_call>{CALL}", "<tool_call>broken</tool_call>", ["look_up"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 4, 1000])
def test_calls_are_separated_however_the_text_is_cut(text: str, content: str, names: list[str], step: int) -> None:
    reader = ToolCallReader()
    certain = "".join(reader.push(text[begin : begin + step]) for begin in range(0, len(text), step))
    rest, calls = reader.finish()
    assert certain + rest == content
    assert [call["function"]["name"] for call in calls] == names
