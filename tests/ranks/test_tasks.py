from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{label}}}}"
"""
CHOICE = 'doc_to_choice: ["red", "green and blue"]\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
TEXT = "generation_kwargs: {max_gen_toks: 6, do_sample: true, temperature: 0.8}\nmetric_list: [{metric: exact_match}]\n"


@pytest.mark.slow  # three processes that import lm-eval
def test_ranks_score_what_one_process_does(
    small_llama: Callable[..., Path], tmp_path: Path, run: Callable[..., Any]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"item {n} is", "label": n % 2}) + "\n" for n in range(11)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, kind, rest in (("choice", "multiple_choice", CHOICE), ("words", "generate_until", TEXT)):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind) + rest)
    models = ("--model", small_llama("a"), "--model", small_llama("b", rope_theta=500.0))
    command = (
        "eval",
        "tasks",
        *models,
        "--task-path",
        tasks,
        "--task",
        "choice",
        "--task",
        "words",
        "--batch",
        3,
        "--json",
    )
    (alone,) = run(1, *command)
    ended = run(2, *command, "--out", tmp_path / "report.json")
    report = json.loads(ended[0].out)
    assert len(report.pop("ranks")) == 2
    assert report == json.loads(alone.out)
    assert json.loads((tmp_path / "report.json").read_text()) == report
