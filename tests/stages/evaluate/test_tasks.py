"""lm-eval on our checkpoints: the same scores as through its own model class, offline, beside a baseline."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dfrot import reference
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, ResourceError, UnsupportedError
from dfrot.generation.engine import Engine
from dfrot.runtime.load import load_model
from dfrot.stages.evaluate.settings import TaskSettings
from dfrot.stages.evaluate.tasks import evaluate_tasks

lm_eval = pytest.importorskip("lm_eval")

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""
TEXT = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{goes_on}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match}}
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{whole}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
LINES = (
    ("import ", "os", "the", "=="),
    ("def __init__(self", "):", "import", "] ="),
    ("for i in range(", "10", "class", "import"),
    ("    return ", "self", "def", "elif"),
    ("if __name__ == ", "'__main__'", "lambda", "yield"),
    ("try:\n    pass\nexcept ", "Exception", "import", "while"),
    ("with open(path) as ", "f", "return", "not"),
    ("raise ValueError", '("', "class", "import"),
    ("x = [", "]", "elif", "global"),
    ("", "import os", "qqq zzz", "#"),
)
TASKS = ("local_choice", "local_text", "local_rolling")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    data = path / "data.jsonl"
    rows = []
    for number, (text, *choices) in enumerate(LINES):
        turned = choices[number % 3 :] + choices[: number % 3]
        row = {"text": text, "choices": turned, "label": turned.index(choices[0]), "goes_on": choices[0]}
        rows.append({**row, "whole": text + choices[0] + "\n" + "\n".join(choices)})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, body in zip(TASKS, (CHOICE, TEXT, ROLLING)):
        (path / f"{name}.yaml").write_text(body.format(data=data))
    return path


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    settings = TaskSettings(TASKS, str(folder), batch=4)
    return evaluate_tasks([reference.path(), reference.path()], settings)


def theirs(folder: Path) -> Any:
    """The same model through lm-eval's own class for transformers models."""
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded, tokenizer = load_model(reference.path(), "bfloat16"), load_tokenizer(reference.path())
    model = HFLM(loaded, tokenizer=tokenizer, batch_size=4, softmax_dtype="float32", device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)


def test_scores_equal_those_of_lm_evals_own_model(ours: Any, folder: Path) -> None:
    expected = theirs(folder)
    scores = ours["results"][0]["scores"]
    reference_results = expected["results"]
    for task, metric in (("local_choice", "acc"), ("local_choice", "acc_norm"), ("local_text", "exact_match")):
        assert scores[task][metric]["value"] == reference_results[task][f"{metric},none"], (task, metric)
    actual, other = (
        scores["local_rolling"]["word_perplexity"]["value"],
        reference_results["local_rolling"]["word_perplexity,none"],
    )
    assert actual == pytest.approx(other, rel=2e-2)  # bfloat16: their batch pads to another width
    assert 0.2 < scores["local_choice"]["acc"]["value"] <= 1, "the task tells something"


def test_log_likelihoods_are_the_models_whatever_the_batch() -> None:
    import torch

    from dfrot.generation.target import Target
    from dfrot.stages.evaluate.lm_eval_model import DfqLM

    engine = Engine(reference.path())
    engine.target = Target(load_model(reference.path(), "float32"))
    requests: list[Any] = [(None, [0, *range(5, 5 + n)], [7, 9][: 1 + n % 2]) for n in range(9)]
    batches = [DfqLM(engine, batch)._loglikelihood_tokens(requests) for batch in (1, 4)]
    for number, (_, context, continuation) in enumerate(requests):
        with torch.inference_mode():
            logits = engine.target.model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(continuation)[:, None]).sum()
        for scores in batches:
            assert scores[number][0] == pytest.approx(float(expected), abs=1e-4)
            assert scores[number][1] == bool((logits.argmax(-1) == torch.tensor(continuation)).all())


def test_of_a_continuation_longer_than_the_context_the_end_is_scored() -> None:
    import torch

    from dfrot.stages.evaluate.lm_eval_model import DfqLM

    model = DfqLM(Engine(reference.path()), batch=2)
    model.max_length = 12
    tokens = [n % 50 + 5 for n in range(40)]
    long, short = model._loglikelihood_tokens([(None, [0], tokens), (None, tokens[:7], tokens[7:9])])
    with torch.inference_mode():
        logits = load_model(reference.path())(torch.tensor([tokens[-13:-1]])).logits[0].float()
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens[-12:])[:, None]).sum()
    assert long[0] == pytest.approx(float(expected), rel=1e-2)  # bfloat16: the batch is one row here
    assert short[0] < 0
    assert model.notes == ["1 continuations are longer than the context of 12 tokens: their last 12 tokens were scored"]


def test_tokenizers_without_eos_and_bos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerBase

    def scores() -> Any:
        return evaluate_tasks([reference.path()], TaskSettings(TASKS, str(folder)))["results"][0]

    usual = scores()
    monkeypatch.setattr(PreTrainedTokenizerBase, "bos_token_id", None, raising=False)
    monkeypatch.setattr(PreTrainedTokenizerBase, "eos_token_id", None, raising=False)
    monkeypatch.setattr("dfrot.generation.engine.end_token_ids", lambda target: frozenset())
    without = scores()
    assert "a newline stood in front" in without["notes"][0]
    assert "notes" not in usual
    assert without["scores"]["local_text"] == usual["scores"]["local_text"], "contexts are there"
    assert without["scores"]["local_rolling"] != usual["scores"]["local_rolling"]


def test_a_repetition_penalty_is_applied() -> None:
    from dfrot.stages.evaluate.lm_eval_model import DfqLM

    model = DfqLM(Engine(reference.path()))
    options = {"do_sample": False, "max_gen_toks": 40, "until": []}
    plain, penalized = (
        model._generate("x = [1, 1, 1, 1,", {**options, **more}) for more in ({}, {"repetition_penalty": 1.8})
    )
    assert plain != penalized
    with pytest.raises(UnsupportedError, match="num_beams"):
        model._generate("x", {**options, "num_beams": 2})


def test_a_checkpoint_differs_from_itself_by_nothing(ours: Any) -> None:
    for task in TASKS[:2]:
        for score in ours["results"][1]["scores"][task].values():
            assert score["difference"] == 0
            assert score["difference_ci"] == [0, 0]
            assert score["documents"] == len(LINES)
    assert "difference" not in ours["results"][0]["scores"]["local_choice"]["acc"]


def test_limit_and_noise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels: list[str] = []
    settings = TaskSettings(("local_choice",), str(folder), limit=3)
    report = evaluate_tasks([reference.path()], settings, progress=lambda label, *_: labels.append(label))
    assert report["results"][0]["scores"]["local_choice"]["acc"]["documents"] == 3
    out, err = capsys.readouterr()
    assert out == err == ""
    assert any("score" in label for label in labels)
    assert logging.getLogger("lm_eval").level != logging.CRITICAL


def test_what_cannot_be_run_is_one_line(folder: Path, tmp_path: Path) -> None:
    model = [reference.path()]
    with pytest.raises(InputError, match="local_choice"):
        evaluate_tasks(model, TaskSettings(("local_choise",), str(folder)))
    with pytest.raises(InputError, match="no such folder"):
        evaluate_tasks(model, TaskSettings(("x",), str(tmp_path / "none")))
    with pytest.raises(InputError, match="give `tasks`"):
        TaskSettings(())
    (tmp_path / "broken.yaml").write_text(CHOICE.format(data=tmp_path / "none.jsonl").replace("local_choice", "broken"))
    with pytest.raises(ResourceError, match=r"broken.*cannot be loaded"):
        evaluate_tasks(model, TaskSettings(("broken",), str(tmp_path)))
    (tmp_path / "code.yaml").write_text("task: code\ndoc_to_text: !function helper.run\n")
    (tmp_path / "helper.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(UnsupportedError, match="`task_code`"):
        evaluate_tasks(model, TaskSettings(("code",), str(tmp_path)))
