"""Conversations as `--dataset`: the plan, the record and the report say how they became text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfrot.data.tokenizer import load_tokenizer
from dfrot.files import read_json
from dfrot.stages.draft.prompts import load_prompts

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    turns = [{"from": "human", "value": "Which way is north?"}, {"from": "gpt", "value": "Where the moss grows."}]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"conversations": turns}) + "\n" for _ in range(12)))
    return file


@pytest.mark.parametrize("rendering", ["chat template", "plain turns"])
def test_every_stage_names_the_rendering(dfq: Any, make: Any, tmp_path: Path, chats: Path, rendering: str) -> None:
    model = make("model")
    if rendering == "chat template":
        (model / "chat_template.jinja").write_text(TEMPLATE)
    data = ("--model", model, "--dataset", chats, "--seqlen", 48)
    planned = dfq("calibrate", *data, "--samples", 2, "--out", tmp_path / "stats", "--plan", "--json")
    assert planned.json["settings"]["conversations"] == rendering, planned.err
    assert dfq("calibrate", *data, "--samples", 2, "--out", tmp_path / "stats").code == 0
    assert read_json(tmp_path / "stats" / "stage.json")["request"]["conversations"] == rendering
    report = dfq("eval", "ppl", *data, "--windows", 2, "--json").json
    assert report["dataset"]["conversations"] == rendering
    assert dfq("rotate", *data, "--out", tmp_path / "rotated").code == 0
    assert read_json(tmp_path / "rotated" / "stage.json")["request"]["dataset"]["conversations"] == rendering


def test_draft_prompts_end_before_the_answer(make: Any, chats: Path) -> None:
    model = make("model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(model)
    prompts = load_prompts(str(chats), tokenizer, 2, 16)
    text = "".join(tokenizer.convert_ids_to_tokens(prompts[0])).replace("Ġ", " ").replace("Ċ", "\n")
    assert text == "[user] Which way is north?\n>"
    chats.write_text(json.dumps({"text": "a text of some length, and more of it"}) + "\n")
    assert [len(prompt) for prompt in load_prompts(str(chats), tokenizer, 2, 16)] == [16, 16]
