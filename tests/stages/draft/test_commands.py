"""The draft commands on the reference model, and what they refuse in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from dfrot_cli.main import main

TRAIN = ("--samples", "6", "--held-out", "2", "--seqlen", "40", "--batch", "2", "--epochs", "1", "--evaluations", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft of the shipped model after three steps."""
    out = tmp_path_factory.mktemp("draft") / "draft"
    result = run("draft", "train", "--model", "reference", "--out", out, *TRAIN, "--quantize-draft", "w8", "--json")
    assert result.exit_code == 0, result.output
    return out


def test_the_record_of_a_training(trained: Path) -> None:
    record = json.loads((trained / "stage.json").read_text())
    assert [entry["step"] for entry in record["history"]] == [0, 3]
    assert record["history"][0]["simulated_tau"] > 1.05, "weights of the target are a head start"
    ranks = record["history"][-1]["held_out_ranks"]
    assert [len(step) for step in ranks] == [4] * 4
    assert [step[0] for step in ranks] == record["history"][-1]["held_out_agreement"]
    assert all(0 < sum(step) <= 1 + 1e-6 for step in [*ranks, *record["history"][-1]["held_out_mass"]])
    assert len(record["quantized"]["held_out_ranks"]) == 4, "a quantized draft has rates of its own"
    assert record["quantized"]["bytes"] < record["quantized"]["bytes_before"]
    assert {path.name for path in trained.iterdir()} == {"draft.json", "draft.safetensors", "stage.json"}


def test_eval_and_generate(trained: Path, tmp_path: Path) -> None:
    common = ("--model", "reference", "--draft", trained)
    shapes = ("--chain", "2", "--tree", "2,2,4")
    few = ("--count", "2", "--prompt-tokens", "12", "--max-new-tokens", "10")
    result = run("draft", "eval", *common, *shapes, *few, "--require-lossless", "--out", tmp_path / "e.json", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "e.json").read_text())
    assert set(report["shapes"]) == {"chain 2", "tree 2,2,4"}
    for numbers in report["shapes"].values():
        assert numbers["identical"] == "2/2"
        assert 1 <= numbers["tau"] <= 3
    results = [
        json.loads(
            run("draft", "generate", *extra, "--prompt", "import os\n", "--max-new-tokens", "12", "--json").stdout
        )
        for extra in ((*common, "--chain", "2"), ("--model", "reference"), common)
    ]
    assert results[0]["tokens"] == results[1]["tokens"] == results[2]["tokens"]
    assert results[0]["choice"] is None
    choice = results[2]["choice"]
    assert choice["trees_considered"], "the record knows ranks"
    assert choice["measured"][0]["shape"] == "chain 1"
    assert min(choice["measured"][0][key] for key in ("step_ms", "draft_ms", "verify_ms")) > 0
    assert choice["seconds"] > 0
    assert results[2]["how"].startswith(
        "plain: drafting does not pay here" if choice["shape"] is None else "speculative"
    )
    assert results[0]["how"].startswith("speculative, chain 2")


def test_a_draft_with_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    result = run("draft", "train", "--model", "reference", "--out", tmp_path / "d", *TRAIN, "--draft-vocab", "300",
                 "--quantize-draft", "w4", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    config = json.loads((tmp_path / "d/draft.json").read_text())
    assert record["vocabulary"]["size"] == config["draft_vocab_size"] == 300
    assert (config["quantized"], config["quantized_head"]) == ("w4", "w8"), "a small head keeps 8 bits"
    assert 0.5 < record["vocabulary"]["coverage"] <= 1
    few = ("--count", "1", "--prompt-tokens", "12", "--max-new-tokens", "10", "--chain", "2", "--tree", "2,2,4")
    result = run("draft", "eval", "--model", "reference", "--draft", tmp_path / "d", *few, "--require-lossless")
    assert result.exit_code == 0, result.output
    for bad, message in (("99999", "at most 4096"), ("1", "at least 2"), ("300.5", "whole number"), ("many", "auto")):
        result = run("draft", "train", "--model", "reference", "--out", tmp_path / "x", *TRAIN, "--draft-vocab", bad)
        assert result.exit_code == 2
        assert "--draft-vocab" in result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_blocks_of_draft_tokens(tmp_path: Path) -> None:
    """dflash from training to text; a chain longer than a block is refused."""
    sizes = ("--arch", "dflash", "--block-size", "4", "--draft-layers", "2", "--roots", "8", "--draft-vocab", "300")
    out = ("--out", tmp_path / "d", "--quantize-draft", "w4", "--quantize-draft-head", "w4", "--json")
    result = run("draft", "train", "--model", "reference", *TRAIN, *sizes, *out)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert [len(record["history"][-1][name]) for name in ("held_out_kl", "held_out_ranks")] == [3, 3]
    config = json.loads((tmp_path / "d" / "draft.json").read_text())
    assert (config["arch"], config["block_size"], config["num_layers"]) == ("dflash", 4, 2)
    assert "quantized_head" not in config
    assert "roots" in record["request"]["train"]
    few = ("--count", "1", "--prompt-tokens", "12", "--max-new-tokens", "10")
    common = ("--model", "reference", "--draft", tmp_path / "d")
    result = run("draft", "eval", *common, *few, "--chain", "3", "--tree", "2,2,4", "--require-lossless")
    assert result.exit_code == 0, result.output
    result = run("draft", "eval", *common, *few, "--chain", "4")
    assert result.exit_code == 2
    assert "--chain" in result.stderr
    assert "3 tokens" in result.stderr
    result = run("draft", "train", "--model", "reference", *TRAIN, "--block-size", "4", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "--block-size" in result.stderr
    result = run("draft", "train", "--model", "reference", "--quantize-draft-head", "w8", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "--quantize-draft-head" in result.stderr


def test_several_drafts_decode_in_turns(trained: Path, tmp_path: Path) -> None:
    eagle = tmp_path / "eagle"
    result = run("draft", "train", "--model", "reference", *TRAIN, "--arch", "eagle3", "--out", eagle, "--json")
    assert result.exit_code == 0, result.output
    drafts = ("--draft", trained, "--draft", eagle, "--draft", "ngram")
    few = ("--count", "2", "--prompt-tokens", "12", "--max-new-tokens", "16", "--chain", "2")
    common = ("draft", "eval", "--model", "reference", *few, "--require-lossless", "--json")
    result = run(*common, *drafts, "--adaptive")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    names = ["draft, chain 2", "draft, adaptive", "eagle, chain 2", "eagle, adaptive", "ngram"]
    assert list(report["shapes"]) == names
    assert list(report["drafts"]) == ["draft", "eagle", "ngram"]
    alone = json.loads(run(*common, *drafts[2:4]).stdout)["shapes"]["chain 2"]
    assert report["shapes"]["eagle, chain 2"]["tau"] == alone["tau"], "a draft reads its own features beside others"
    result = run(*common, *drafts[:2], *drafts[:2])
    assert result.exit_code == 2
    assert "given twice" in result.stderr


def test_look_up_drafting(tmp_path: Path) -> None:
    common = ("--model", "reference", "--draft", "ngram")
    few = ("--count", "2", "--prompt-tokens", "12", "--max-new-tokens", "24")
    for shape, name in (((), "ngram"), (("--chain", "2"), "chain 2")):
        result = run("draft", "eval", *common, *shape, *few, "--require-lossless", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert list(report["shapes"]) == [name]
        assert report["drafts"]["ngram"]["parameters"] == 0
        numbers = report["shapes"][name]
        assert numbers["identical"] == "2/2"
        assert 0 <= numbers["acceptance_rate"] <= 1
        assert 1 <= numbers["tau"] <= 11
    prompt = ("--prompt", "a = 1\nb = 2\na = 1\nb = 2\na = 1\n", "--max-new-tokens", "24", "--json")
    results = [json.loads(run("generate", *given, *prompt).stdout) for given in (common, common[:2])]
    assert results[0]["tokens"] == results[1]["tokens"]
    assert results[0]["choice"]["measured"][0]["shape"] == "chain 3"
    assert results[0]["how"].startswith("speculative, ngram, chains up to")
    plan = run("generate", *common, *prompt, "--plan")
    assert json.loads(plan.stdout)["inputs"]["draft"] == "ngram"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--draft", "ngram", "--prompt", "x", "--tree", "2,2,4"), "proposes chains"),
        (("generate", "--draft", "ngram", "--prompt", "x", "--ngram-tokens", "99"), "--ngram-tokens 99"),
        (("generate", "--draft", "./ngram", "--prompt", "x"), "no draft.json"),
        (("generate", "--prompt", "x", "--ngram-length", "2"), "--ngram-length and --ngram-tokens belong to --draft"),
        (("draft", "export", "--draft", "ngram", "--out", "never"), "has no weights"),
        (("draft", "train", "--arch", "ngram", "--out", "never"), "ngram"),
    ],
)
def test_what_look_up_drafting_refuses(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(main, [*arguments, "--model", "reference"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("never").exists()


def test_numbers_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed; elsewhere the run is refused before it starts."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "log")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

    command = (
        "draft",
        "train",
        "--model",
        "reference",
        "--out",
        tmp_path / "out",
        *TRAIN,
        "--tensorboard",
        tmp_path / "log",
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run(*command)
    assert result.exit_code == 2
    assert "pip install tensorboard" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    history = json.loads(result.stdout)["history"]
    assert ("loss", history[-1]["loss"], 3) in written
    assert {step for name, _, step in written if name == "simulated_tau"} == {0, 3}
    assert ("held_out_kl/2", history[0]["held_out_kl"][2], 0) in written


def test_plans_write_nothing(tmp_path: Path) -> None:
    for command in ("train", "extract"):
        result = run("draft", command, "--model", "reference", "--out", tmp_path / "x", "--plan", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["state"] == "new"
    assert not any(tmp_path.iterdir())


def test_a_target_with_an_integer_head_is_refused_before_work(tmp_path: Path) -> None:
    quantized = run(
        *("quantize", "--model", "reference", "--algorithm", "rtn", "--scheme", "w4a16", "--head", "8"),
        *("--out", tmp_path / "packed"),
    )
    assert quantized.exit_code == 0, quantized.output
    result = run("draft", "train", "--model", tmp_path / "packed", "--out", tmp_path / "draft", *TRAIN)
    assert result.exit_code == 2
    assert "its head has 8 bits" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["packed"], "nothing was begun"


def test_extracted_features_train_a_draft(tmp_path: Path) -> None:
    result = run("draft", "extract", "--model", "reference", "--out", tmp_path / "f", *TRAIN[:6])
    assert result.exit_code == 0, result.output
    result = run(
        "draft", "train", "--model", "reference", "--features", tmp_path / "f", "--out", tmp_path / "d", *TRAIN
    )
    assert result.exit_code == 0, result.output
    again = run("draft", "train", "--model", "reference", "--features", tmp_path / "f", "--out", tmp_path / "d", *TRAIN)
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "--temperature", "1", "--require-lossless"), "greedy"),
        (("eval", "--tree", "9"), "three numbers"),
        (("generate", "--prompt", "x", "--chain", "1", "--tree", "2,2,4"), "one shape"),
        (("generate", "--prompt", "x", "--top-p", "2"), "--top-p"),
        (("generate", "--prompt", "x", "--max-new-tokens", "5000"), "context"),
    ],
)
def test_bad_options_are_one_line(trained: Path, arguments: tuple[str, ...], message: str) -> None:
    command, *rest = arguments
    result = run("draft", command, "--model", "reference", "--draft", trained, *rest)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
