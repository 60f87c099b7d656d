"""Each check passes a folder without faults and finds the fault that is planted for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.publish.checks import CHECKS, run_checks
from dfrot.publish.published_folder import PublishedFolder
from dfrot.tensor_file import save_tensors

HOME = "/" + "home"  # of somebody's machine
Read = Callable[..., PublishedFolder]


def lines(subject: PublishedFolder, check: str) -> list[str]:
    """What one check says, and that nobody else blocks."""
    findings = run_checks(subject)
    assert {finding.check for finding in findings if finding.blocks} <= {check}
    assert all("\n" not in finding.line and finding.remedy for finding in findings)
    return [finding.line for finding in findings if finding.check == check]


def test_a_folder_without_faults_passes(subject: Read) -> None:
    assert run_checks(subject()) == []
    assert len(CHECKS) == 10


def test_two_shards_pass(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.shard(folder)
    assert run_checks(subject()) == []


# ---- head ----
def quantize_head(folder: Path, kit: SimpleNamespace, name: str = "weight_packed") -> None:
    weights = {key: value for key, value in kit.tensors().items() if not key.startswith("lm_head")}
    weights[f"lm_head.{name}"] = torch.zeros(300, 1, dtype=torch.int32)
    save_tensors(folder / "model.safetensors", weights)


def test_a_quantized_head_must_be_named(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    quantize_head(folder, kit)
    kit.edit(folder / "config.json", lambda config: config["quantization_config"].update(ignore=[]))
    (line,) = lines(subject(), "head")
    assert line.startswith("config.json: lm_head is quantized and no group")
    group = {"targets": ["Linear", "re:.*lm_head$"]}
    kit.edit(folder / "config.json", lambda c: c["quantization_config"]["config_groups"]["group_0"].update(group))
    assert lines(subject(), "head") == []


def test_a_quantized_head_that_is_ignored(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    quantize_head(folder, kit)
    group = {"targets": ["re:.*lm_head$"]}
    kit.edit(folder / "config.json", lambda c: c["quantization_config"]["config_groups"]["group_0"].update(group))
    assert len(lines(subject(), "head")) == 1


def test_a_quantized_head_of_gptq(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    quantize_head(folder, kit, "qweight")
    kit.edit(folder / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    (line,) = lines(subject(), "head")
    assert "quantization_config.lm_head is not true" in line
    kit.edit(folder / "config.json", lambda c: c["quantization_config"].update(lm_head=True))
    assert lines(subject(), "head") == []


def test_a_tied_head_with_integers(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    quantize_head(folder, kit)
    group = {"targets": ["re:.*lm_head$"]}
    kit.edit(folder / "config.json", lambda c: c["quantization_config"]["config_groups"]["group_0"].update(group))
    kit.edit(folder / "config.json", lambda c: c["quantization_config"].update(ignore=[]))
    kit.edit(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    (line,) = lines(subject(), "head")
    assert "tie_word_embeddings is true" in line


# ---- MTP ----
def test_a_promised_prediction_layer_is_missing(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.edit(folder / "config.json", lambda config: config.update(num_nextn_predict_layers=1))
    (line,) = lines(subject(), "mtp")
    assert line.startswith("config.json: num_nextn_predict_layers is 1 and no weight of such a layer")


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj", "mtp.layers.0.mlp.up_proj"])
def test_a_prediction_layer_must_be_excepted(subject: Read, folder: Path, kit: SimpleNamespace, name: str) -> None:
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    save_tensors(folder / "model.safetensors", {**kit.tensors(), f"{name}.weight": weight})
    kit.edit(folder / "config.json", lambda config: config.update(text_config={"mtp_num_hidden_layers": 1}))
    (line,) = lines(subject(), "mtp")
    assert f"{name} and 0 more" in line
    kit.edit(folder / "config.json", lambda c: c["quantization_config"].update(ignore=["lm_head", f"re:.*{name}$"]))
    assert lines(subject(), "mtp") == []


# ---- tokenizer, chat template, generation config, processor ----
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "vocab": (lambda t: t["model"]["vocab"].update(c=4), "its vocab has 4 entries, the base model's 3"),
    "merges": (lambda t: t["model"].update(merges=[]), "its merges has 0 entries, the base model's 1"),
    "added": (lambda t: t["added_tokens"].append({"id": 5, "content": "<pad>"}), "2 added tokens"),
    "normalizer": (lambda t: t.update(normalizer={"type": "NFC"}), "its normalizer"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_changed(subject: Read, folder: Path, kit: SimpleNamespace, change: str) -> None:
    edit, expected = CHANGES[change]
    kit.edit(folder / "tokenizer.json", edit)
    (line,) = lines(subject(), "tokenizer")
    assert line.startswith("tokenizer.json: differs from the base model's: " + expected)


def test_a_tokenizer_written_another_way(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.edit(folder / "tokenizer.json", lambda t: t["model"].update(merges=[["a", "b"]]))
    assert lines(subject(), "tokenizer") == []


def test_no_tokenizer(subject: Read, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "is missing" in lines(subject(), "tokenizer")[0]


def test_what_was_not_compared_is_said(subject: Read) -> None:
    findings = run_checks(subject(base_folder=None))
    assert [(finding.check, finding.blocks) for finding in findings] == [("tokenizer", False)]
    assert "was not compared with the base model" in findings[0].line


def test_a_missing_chat_template(subject: Read, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert lines(subject(), "chat template") == [
        "chat_template.jinja: is missing, the base model has one; copy it from the base model"
    ]
    assert lines(subject(base_folder=None), "chat template") == []
    (line,) = lines(subject(base_folder=None, repository="org/Name-Instruct-W4"), "chat template")
    assert "tuned for conversations" in line


def test_a_missing_generation_config(subject: Read, folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert "the base model has one" in lines(subject(), "generation config")[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, "sets temperature, top_p without do_sample"),
        ({"eos_token_id": [2, 300]}, "eos_token_id 300 is beyond the vocabulary of 300"),
        ([], "is not a JSON object"),
    ],
)
def test_a_wrong_generation_config(
    subject: Read, folder: Path, kit: SimpleNamespace, value: Any, expected: str
) -> None:
    kit.write_json(folder / "generation_config.json", value)
    (line,) = lines(subject(), "generation config")
    assert expected in line


def test_sampling_settings_with_sampling_pass(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.write_json(folder / "generation_config.json", {"temperature": 0.6, "do_sample": True})
    assert lines(subject(), "generation config") == []


def test_a_processor_that_is_missing(subject: Read, folder: Path, base: Path, kit: SimpleNamespace) -> None:
    kit.edit(folder / "config.json", lambda config: config.update(vision_config={}))
    (line,) = lines(subject(base_folder=None), "processor")
    assert "describes a model that reads images" in line
    kit.write_json(base / "preprocessor_config.json", {})
    assert "preprocessor_config.json: is missing" in lines(subject(), "processor")[0]
    kit.write_json(folder / "preprocessor_config.json", {})
    assert lines(subject(), "processor") == []


# ---- shards, dtypes ----
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def _swap(value: Any) -> None:
    value["weight_map"]["lm_head.weight"] = SECOND


def test_an_index_that_disagrees(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.shard(folder)
    kit.edit(folder / INDEX, _swap)
    assert f"{INDEX}: places lm_head.weight in {SECOND}, it lies in {FIRST}; correct the index" in lines(
        subject(), "shards"
    )
    kit.edit(folder / INDEX, lambda value: value["weight_map"].pop("lm_head.weight"))
    assert f"tensor lm_head.weight is not in {INDEX}" in lines(subject(), "shards")[0]
    kit.edit(folder / INDEX, lambda value: value["weight_map"].update({"lm_head.weight": FIRST, "extra": FIRST}))
    assert "tensor extra is missing" in lines(subject(), "shards")[0]


def test_a_total_that_disagrees(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.shard(folder)
    kit.edit(folder / INDEX, lambda value: value["metadata"].update(total_size=1))
    assert "total_size is 1" in lines(subject(), "shards")[0]


def test_shards_that_are_missing_extra_or_cut(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    save_tensors(folder / "other.safetensors", {"x": torch.zeros(1)})
    assert "no model.safetensors.index.json names it" in lines(subject(), "shards")[0]
    kit.shard(folder)
    assert f"other.safetensors: {INDEX} does not name it" in lines(subject(), "shards")[0]
    (folder / "other.safetensors").unlink()
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-2])
    assert "truncated" in lines(subject(), "shards")[0]
    (folder / SECOND).unlink()
    assert f"{SECOND}: is missing" in lines(subject(), "shards")[0]


def test_no_weights(subject: Read, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: is missing" in lines(subject(), "shards")[0]


def test_dtypes_that_disagree(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.edit(folder / "config.json", lambda config: config.update(dtype="float16"))
    (line,) = lines(subject(), "dtypes")
    assert line == "config.json: dtype is float16, the 16-bit tensors are bfloat16; set it to bfloat16"
    kit.edit(folder / "config.json", lambda config: config.update(torch_dtype="torch.bfloat16"))
    assert "names two dtypes" in lines(subject(), "dtypes")[0]


# ---- leftovers ----
@pytest.mark.parametrize(
    "path",
    [
        f"{HOME}/bob/models/base",
        "/tmp/x/y",
        "file:///mnt/data/base",
        "C:\\Users\\bob\\base",
        "~/models/base",
        "/data/c4",
    ],
)
def test_paths_of_a_machine(subject: Read, folder: Path, kit: SimpleNamespace, path: str) -> None:
    kit.edit(folder / "config.json", lambda config: config.update(_name_or_path=path))
    (line,) = lines(subject(), "leftovers")
    assert line.startswith("config.json: names a place on a machine")


@pytest.mark.parametrize("text", [f"https://example.org{HOME}/page", "org/base", "a/tmp/b", "and/or", "</home>"])
def test_what_is_no_path_of_a_machine(subject: Read, folder: Path, kit: SimpleNamespace, text: str) -> None:
    kit.edit(folder / "config.json", lambda config: config.update(note=text))
    assert lines(subject(), "leftovers") == []


def test_a_vocabulary_may_hold_paths(subject: Read, folder: Path, base: Path, kit: SimpleNamespace) -> None:
    for place in (folder, base):
        kit.edit(place / "tokenizer.json", lambda t: t["model"]["vocab"].update({f"{HOME}/bob/x": 5}))
    assert lines(subject(), "leftovers") == []


def test_paths_in_the_header_of_weights(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    from safetensors.torch import save_file

    save_file(kit.tensors(), folder / "model.safetensors", metadata={"source": f"{HOME}/bob/base"})
    assert lines(subject(), "leftovers")[0].startswith("model.safetensors: names a place on a machine")


@pytest.mark.parametrize(
    "token", ["hf_" + "a" * 34, "sk-" + "b" * 40, "ghp_" + "c" * 36, "-----BEGIN PRIVATE KEY-----"]
)
def test_access_tokens_are_never_forced_nor_shown(
    subject: Read, folder: Path, kit: SimpleNamespace, token: str
) -> None:
    kit.write_json(folder / "tokenizer_config.json", {"token": token})
    (finding,) = run_checks(subject())
    assert finding.blocks
    assert not finding.forcible
    assert token not in finding.line


def test_a_user_and_a_machine(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    kit.write_json(folder / "stage.json", {"made": "bob@bobs-laptop"})
    assert "names a user and a machine" in lines(subject(), "leftovers")[0]


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "x.pkl", "sub/state.ckpt"])
def test_pickles(subject: Read, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert lines(subject(), "leftovers") == [f"{name}: may run code where it is read; remove it; dfq sends no pickles"]


def test_code(subject: Read, folder: Path, kit: SimpleNamespace) -> None:
    (folder / "modeling.py").write_text("import os")
    kit.edit(folder / "config.json", lambda config: config.update(auto_map={"AutoModel": "modeling.M"}))
    assert len(lines(subject(), "leftovers")) == 2


def test_caches_are_left_out(subject: Read, folder: Path) -> None:
    for name in (".git/config", "__pycache__/x", ".cache/huggingface/a.lock", "training.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{HOME}/bob")
    (finding,) = run_checks(subject())
    assert not finding.blocks
    assert "4 files are no part of a checkpoint" in finding.line
    assert "training.log" in finding.line


def test_a_link_to_nothing(subject: Read, folder: Path) -> None:
    (folder / "vocab.json").symlink_to(folder / "gone.json")
    assert "is a link to nothing" in lines(subject(), "leftovers")[0]


# ---- licence ----
@pytest.mark.parametrize(
    ("license", "expected"),
    [
        (None, "names no licence"),
        ("cc-by-nd-4.0", "does not allow changed versions"),
        ("apache", "is no identifier of the hub"),
        ("other", "needs license_name and license_link"),
        ("llama3.1", 'begin with "Llama"'),
    ],
)
def test_licences(subject: Read, license: str | None, expected: str) -> None:
    (line,) = lines(subject(license=license), "licence")
    assert expected in line


def test_licences_that_allow_it(subject: Read) -> None:
    assert lines(subject(license="llama3.1", repository="org/Llama-3.1-8B-W4"), "licence") == []
    assert lines(subject(license="other", card_entries={"license_name": "own"}), "licence") == []


def test_hostile_json_is_no_traceback(subject: Read, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(dtype=3, num_nextn_predict_layers=True, text_config=[], vocab_size="many")
    config["quantization_config"] |= {"ignore": 4, "config_groups": {"g": None}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("[]")
    (folder / "generation_config.json").write_text("{")
    assert run_checks(subject())
