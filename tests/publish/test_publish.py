"""Cards and dry runs of packed checkpoints, exports and drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from dfrot.errors import DfqError, ExistsError, InputError, UnsupportedError
from dfrot.files import file_sha256, write_json
from dfrot.publish.front_matter import front_matter
from dfrot.publish.licences import LICENCES, attribution, refusal
from dfrot.publish.run import publish
from dfrot.publish.sent_files import is_sent
from dfrot.publish.settings import PublishSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.tensor_file import save_tensors
from dfrot_cli.main import main


def settings(**changes: Any) -> PublishSettings:
    return PublishSettings(**{"to": "org/name", "base": "org/base", "license": "mit", **changes})


def dry(folder: Path, out: Path | None = None, **changes: Any) -> dict[str, Any]:
    return publish(folder, settings(**changes), out, dry_run=True)


def entries(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_a_packed_checkpoint(packed: Path, tmp_path: Path) -> None:
    result = dry(packed, tmp_path / "out")
    head = entries(result["card"])
    assert head == {
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "library_name": "dfq",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["dfq", "quantized", "w4a16-g32"],
    }
    assert "dfq serve --model org/name" in result["card"]
    assert (
        "dfq quantize --model org/base --algorithm rtn --no-mse-clip --scheme w4a16-g32 --out packed" in result["card"]
    )
    assert "No measurements were published" in result["card"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(result["files"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "README.md").read_text() == result["card"]
    assert not (packed / "README.md").exists()


@pytest.mark.parametrize(
    ("target", "library", "serve"),
    [
        ("compressed-tensors", "transformers", "vllm serve org/name"),
        ("gptq", "transformers", "python -m sglang.launch_server --model-path org/name"),
        ("gguf", "gguf", "llama-server --hf-repo org/name --hf-file name-Q4_0.gguf"),
    ],
)
def test_exports(exported: Callable[[str], Path], tmp_path: Path, target: str, library: str, serve: str) -> None:
    result = dry(exported(target), tmp_path / "out")
    assert entries(result["card"])["library_name"] == library
    assert serve in result["card"]
    assert f"dfq export --model packed --to {target} --out export" in result["card"]
    assert [finding["check"] for finding in result["findings"] if finding["blocks"]] == []
    weights = "name-Q4_0.gguf" if target == "gguf" else "model.safetensors"
    assert (tmp_path / "out" / weights).is_file()


def test_a_draft(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    write_json(folder / "draft.json", {"arch": "eagle3", "hidden_size": 64})
    save_tensors(folder / "draft.safetensors", {"x": torch.zeros(2)})
    result = dry(folder, base="org/target")
    head = entries(result["card"])
    assert (head["base_model"], head["library_name"]) == ("org/target", "dfq")
    assert "base_model_relation" not in head
    assert "dfq draft train --model org/target --arch eagle3" in result["card"]
    assert "dfq serve --model org/target --draft draft" in result["card"]
    assert result["findings"] == []
    write_json(tmp_path / "check.json", acceptance(weights=file_sha256(folder / "draft.safetensors")))
    card = dry(folder, base="org/target", results=(tmp_path / "check.json",))["card"]
    assert "| vllm (vllm 0.32) | 1.322 | 1.344 | 0.984 |" in card
    assert "| llama.cpp | 1.285 | 1.344 | 0.984 |" in card


WEIGHTS = "ab" * 32  # SHA-256 of the draft that was exported
FORMATS = ("speculators", "gguf")


def draft_export(arch: str, form: str, folder: Path, weights: str = WEIGHTS) -> Path:
    """What `dfq draft export` writes, without most of the weights."""
    config = {"arch": arch, "hidden_size": 64, "draft_vocab_size": 50, "target_fingerprint": "f00d" * 16}
    config |= {"num_layers": 2, "block_size": 6} if arch == "dflash" else {}
    folder.mkdir()
    if form == "gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(folder / "model.gguf", arch)
        writer.add_string("dfq.target_fingerprint", config["target_fingerprint"])
        writer.add_uint32(f"{arch}.block_size", config.get("block_size", 0))
        writer.add_tensor("fc.weight", torch.zeros(2, 2).numpy())
        for write in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{write}_to_file")()
        writer.close()
    else:
        proposal = {"speculative_tokens": 5 if arch == "dflash" else 3}
        speculators = {"speculators_model_type": arch, "speculators_config": {"proposal_methods": [proposal]}}
        write_json(folder / "config.json", speculators)
        save_tensors(folder / "model.safetensors", {"fc.weight": torch.zeros(2, 2)})
    request = {"draft": config, "weights": weights, "verifier": "packed", "format": form}
    write_json(folder / "stage.json", {"kind": "draft export", "request": request})
    return folder


def acceptance(**changes: Any) -> dict[str, Any]:
    """A report of `dfq draft export --check`."""
    figures = {"tau": 1.322, "replayed": 1.344, "ratio": 0.984}
    rows = [
        {"engine": "vllm", **figures, "versions": {"vllm": "0.32"}},
        {"engine": "llama.cpp", **(figures | {"tau": 1.285})},
    ]
    report = {"kind": "draft check", "weights": WEIGHTS, "dataset": "stdlib", "chain": 3, "prompts": 24}
    report |= {"new_tokens": 128, "rows": rows} | changes
    return report


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("arch", ["eagle3", "dflash"])
def test_exported_drafts(tmp_path: Path, arch: str, form: str) -> None:
    """Each is served by its engine, beside an export of the very target, and says what engines accepted."""
    folder = draft_export(arch, form, tmp_path / "draft")
    write_json(folder / "check.json", acceptance())
    result = dry(folder, tmp_path / "out", base="org/target")
    card, head = result["card"], entries(result["card"])
    assert [finding["check"] for finding in result["findings"]] == []
    assert (head["base_model"], head["tags"]) == ("org/target", ["dfq", "speculative-decoding"])
    assert head["library_name"] == form
    assert "base_model_relation" not in head
    assert ("- fingerprint of its target: `" + "f00d" * 16 + "`\n") in card
    count = 5 if arch == "dflash" else 3
    option = " --draft-layers 2 --block-size 6" if arch == "dflash" else ""
    assert f"dfq draft train --model packed --arch {arch}{option} --draft-vocab 50 --out draft\n" in card
    assert f"dfq draft export --model packed --draft draft --format {form} --out exported\n" in card
    if form == "gguf":
        name = "name-BF16.gguf"
        fetch = f"hf download org/name {name} --local-dir draft && llama-server --hf-repo org/target -md draft/{name}"
        assert f"{fetch} --spec-type draft-{arch} --spec-draft-n-max {count}  # llama.cpp\n" in card
        assert "llama.cpp must serve that checkpoint, exported with `dfq export --model packed --to gguf`" in card
        assert "| llama.cpp | 1.285 | 1.344 | 0.984 |" in card
        assert "| vllm" not in card
    else:
        config = {"model": "org/name", "num_speculative_tokens": count, "method": arch}
        assert f"vllm serve org/target --speculative-config '{json.dumps(config)}'  # vLLM\n" in card
        assert "vLLM must serve that checkpoint" in card
        assert "| vllm (vllm 0.32) | 1.322 | 1.344 | 0.984 |" in card
        assert "| llama.cpp" not in card
    assert "24 prompts of stdlib, greedy, 128 new tokens each, chains of 3" in card
    weights = "name-BF16.gguf" if form == "gguf" else "model.safetensors"
    assert {"stage.json", "check.json", weights} <= set(result["files"])


def test_acceptance_of_another_draft_is_no_figure_of_this_one(tmp_path: Path) -> None:
    folder = draft_export("eagle3", "speculators", tmp_path / "draft", weights="cd" * 32)
    write_json(folder / "check.json", acceptance())
    (folder / "notes.json").write_text("{")
    assert "No measurements were published" in dry(folder)["card"]
    with pytest.raises(InputError, match="holds no result of"):
        dry(folder, results=(folder / "check.json",))
    write_json(folder / "check.json", acceptance(weights="cd" * 32, rows=[{"engine": "vllm"}]))
    with pytest.raises(InputError, match="is damaged"):
        dry(folder)


def test_drafts_that_dfq_did_not_export(tmp_path: Path) -> None:
    """Nothing is said about their making or their target; a GGUF file that cannot be read is no model either."""
    folder = draft_export("eagle3", "speculators", tmp_path / "draft")
    (folder / "stage.json").unlink()
    card = dry(folder)["card"]
    assert "dfq draft" not in card
    assert "fingerprint" not in card
    folder = draft_export("eagle3", "gguf", tmp_path / "damaged")
    (folder / "model.gguf").write_bytes(b"GGUF")
    result = dry(folder)
    assert result["format"] == "gguf draft"
    assert [finding["check"] for finding in result["findings"]] == ["shards"]
    (folder / "target.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        InputError, match=r"several GGUF models \(model\.gguf, target\.gguf\); publish each from a folder"
    ):
        dry(folder)


def test_measurements(packed: Path, text_file: Path, tmp_path: Path) -> None:
    measured = PerplexitySettings(dataset=str(text_file), seqlen=64, windows=2)
    report = evaluate([tmp_path / "model", packed], measured)
    write_json(tmp_path / "ppl.json", report)
    card = dry(packed, results=(tmp_path / "ppl.json",))["card"]
    base, ours = report["results"]
    assert f"| base | 16 bits | {base['perplexity']:.4f} | 1.0000 |" in card
    assert f"| this model | w4a16-g32 | {ours['perplexity']:.4f} | {ours['ratio_to_first']:.4f} |" in card
    assert f"`{report['protocol']['id']}`" in card
    assert str(tmp_path) not in card


def test_measurements_of_the_checkpoint_behind_an_export(
    packed: Path, exported: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    report = evaluate([tmp_path / "model", packed], PerplexitySettings(dataset=str(text_file), seqlen=64, windows=2))
    write_json(tmp_path / "ppl.json", report)
    card = dry(exported("gptq"), results=(tmp_path / "ppl.json",))["card"]
    assert f"| this model | w4a16-g32 | {report['results'][1]['perplexity']:.4f} |" in card


def test_measurements_of_something_else_are_refused(packed: Path, text_file: Path, tmp_path: Path) -> None:
    report = evaluate([tmp_path / "model"], PerplexitySettings(dataset=str(text_file), seqlen=64, windows=2))
    write_json(tmp_path / "ppl.json", report)
    with pytest.raises(InputError, match="holds no result of") as caught:
        dry(packed, results=(tmp_path / "ppl.json",))
    assert caught.value.fields == ("results",)
    write_json(tmp_path / "ppl.json", {"protocol": {}, "results": [{"model": str(packed)}]})
    with pytest.raises(InputError, match="is damaged"):
        dry(packed, results=(tmp_path / "ppl.json",))


def test_a_run_of_a_recipe_is_found(packed: Path, text_file: Path, tmp_path: Path) -> None:
    report = evaluate([tmp_path / "model", packed], PerplexitySettings(dataset=str(text_file), seqlen=64, windows=2))
    for name, result in zip(("model", "packed"), report["results"]):
        result["model"] = name
    (packed.parent / "eval").mkdir()
    write_json(packed.parent / "eval" / "stage.json", {"kind": "eval", "report": report})
    assert f"{report['results'][1]['perplexity']:.4f}" in dry(packed)["card"]


def test_tasks_and_engines(exported: Callable[[str], Path], packed: Path, tmp_path: Path) -> None:
    folder = exported("compressed-tensors")
    record = json.loads((folder / "stage.json").read_text())
    row = {"scheme": "w4a16-g32", "target": "compressed-tensors", "refused": None, "storage": "pack-quantized"}
    row |= {"engine": "transformers", "perplexity": 9.5, "ours": 9.5, "ratio": 1.0, "logits": 0.0}
    check = {"kind": "export check", "request": {"model": record["request"]["model"]}, "rows": [row]}
    write_json(tmp_path / "check.json", check)
    score = {"value": 0.25}
    results = [{"model": str(place), "scores": {"arc": {"acc": score}}} for place in (tmp_path / "model", packed)]
    tasks = {"kind": "eval tasks", "lm_eval": "0.4", "settings": {"limit": 20, "fewshot": None}, "results": results}
    write_json(tmp_path / "tasks.json", tasks)
    card = dry(folder, results=(tmp_path / "check.json", tmp_path / "tasks.json"))["card"]
    assert "| transformers | pack-quantized | 9.5000 | 9.5000 | 1.0000 | 0.0e+00 |" in card
    assert "Tasks (lm-eval 0.4, limit 20)." in card
    assert "| arc | acc | 0.2500 | 0.2500 |" in card
    check["request"] = {"model": "another"}
    write_json(tmp_path / "check.json", check)
    with pytest.raises(InputError, match="holds no result of"):
        dry(folder, results=(tmp_path / "check.json",))


def test_a_card_of_ones_own(packed: Path, tmp_path: Path) -> None:
    card = "---\nbase_model: own/base\nlicense: gpl-3.0\n---\n# Mine\n"
    (packed / "README.md").write_text(card)
    result = publish(packed, PublishSettings("org/name"), tmp_path / "out", dry_run=True)
    assert (result["card"], result["base_model"], result["license"]) == (card, "own/base", "gpl-3.0")
    assert (tmp_path / "out" / "README.md").read_text() == card
    again = publish(tmp_path / "out", PublishSettings("org/name"), dry_run=True)
    assert again["card"] == card


def test_a_readme_without_front_matter(packed: Path) -> None:
    (packed / "README.md").write_text("# Mine\n")
    card = dry(packed)["card"]
    assert entries(card)["base_model"] == "org/base"
    assert card.endswith("---\n\n# Mine\n")
    (packed / "README.md").write_text("# w4a16\n\nWritten by `dfq export --for vllm` as gptq.\n")
    assert "## How it was made" in dry(packed)["card"]


def test_licence_and_base_of_record_and_base_folder(packed: Path, tmp_path: Path) -> None:
    write_json(packed / "stage.json", json.loads((packed / "stage.json").read_text()) | {"hub": {"hub_id": "o/base"}})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: gemma\n---\n")
    result = publish(packed, PublishSettings("org/name", base_folder=tmp_path / "base"), dry_run=True)
    assert (result["base_model"], result["license"]) == ("o/base", "gemma")
    assert "Gemma is provided under" in result["card"]


def test_the_base_must_be_named(packed: Path) -> None:
    with pytest.raises(InputError, match="give `base`"):
        publish(packed, PublishSettings("org/name"), dry_run=True)


@pytest.mark.parametrize("to", ["name", "a/b/c", "org/..", "org/x.git", "org/-x", "../x"])
def test_names_that_are_no_repository(packed: Path, to: str) -> None:
    with pytest.raises(InputError, match="is not ORG/NAME"):
        dry(packed, to=to)


def test_what_cannot_be_published(small_llama: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is not quantized"):
        dry(small_llama("dense"))
    with pytest.raises(InputError, match="is no folder"):
        dry(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        dry(tmp_path / "empty")


def test_an_existing_output(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExistsError):
        dry(packed, tmp_path / "out")
    publish(packed, settings(), tmp_path / "out", dry_run=True, overwrite=True)
    assert (tmp_path / "out" / "README.md").is_file()
    publish(packed, settings(), tmp_path / "out", dry_run=True, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ExistsError, match="dfq did not write it"):
        publish(packed, settings(), tmp_path / "mine", dry_run=True, overwrite=True)
    with pytest.raises(InputError, match="belongs to `dry_run`"):
        publish(packed, settings(), tmp_path / "other")


@pytest.mark.parametrize("text", ["---\na: [\n---\n", "---\na: b\n", "---\n- a\n---\n", "---\na: &x 1\nb: *x\n---\n"])
def test_front_matter_that_is_refused(text: str) -> None:
    with pytest.raises(DfqError, match="front matter"):
        front_matter(text, "README.md")


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("model.safetensors", True),
        ("additional_chat_templates/tools.jinja", True),
        ("LICENSE.txt", True),
        (".hidden.json", False),
        (".git/config.json", False),
        ("sub/model.safetensors", False),
        ("run.log", False),
    ],
)
def test_which_files_are_sent(name: str, sent: bool) -> None:
    assert is_sent(name) is sent


def test_licences_are_consistent() -> None:
    assert all(refusal(name) is None or "nd" in name for name in LICENCES)
    assert attribution("llama3.1") == "Built with Llama."
    assert attribution("mit") is None


def test_the_command(packed: Path, tmp_path: Path, kit: SimpleNamespace) -> None:
    words = ["publish", str(packed), "--to", "org/name", "--base", "org/base", "--license", "mit", "--dry-run"]
    ran = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    assert "every check passed" in ran.output
    assert "nothing was sent" in ran.output
    (packed / "optimizer.pt").write_bytes(b"")
    ran = CliRunner().invoke(main, [*words, "--json"])
    assert [row["check"] for row in json.loads(ran.stdout)["findings"] if row["blocks"]] == ["leftovers"]
    ran = CliRunner().invoke(main, words[:-1])
    assert ran.exit_code == 2
    assert "optimizer.pt: may run code where it is read" in ran.stderr
    assert "--force" in ran.stderr
    ran = CliRunner().invoke(main, [*words, "--plan"])
    assert "plan: dfq publish" in ran.output
