"""GGUF files in place of checkpoint folders: opened by the library, by stages and by commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.export.inspect import inspect
from dfrot.hub import resolve_model
from dfrot.inputs import DequantizedCheckpoint, open_described_model, open_model
from dfrot.inputs.gguf.folder import gguf_file
from dfrot.runtime.load import load_model
from dfrot.vision.fingerprint import checkpoint_fingerprint
from dfrot_cli.main import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that stand for files are written here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


def test_the_model_computes_what_the_original_computes(name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    original = kit.random_model(name)
    file = kit.write_gguf(tmp_path / "model.gguf", original)
    checkpoint, _ = open_described_model(file)
    assert isinstance(checkpoint, DequantizedCheckpoint)
    assert checkpoint.format == "GGUF (F32)"
    model = load_model(resolve_model(str(file)))
    torch.testing.assert_close(kit.logits(model), kit.logits(original), rtol=1e-3, atol=1e-3)


def test_rows_are_those_of_the_whole_tensor(kit: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = open_model(kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"), "Q8_0"))
    for key in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        whole = checkpoint.read(key)
        assert whole.dtype == torch.bfloat16
        for begin, end in ((0, 1), (3, 21), (17, 18), (0, 10**9), (len(whole) - 1, len(whole))):
            assert torch.equal(checkpoint.read_rows(key, begin, end), whole[begin:end])


def test_dtype(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.random_model("qwen2")
    file = kit.write_gguf(tmp_path / "model.gguf", model, "F16")
    assert open_model(file).shape("lm_head.weight") == (4096, 64)
    assert open_model(file).read("lm_head.weight").dtype == torch.float16
    exact = open_model(file, torch.float32).read("lm_head.weight")
    assert torch.equal(exact, model.lm_head.weight.half().float())
    assert open_model(file, torch.bfloat16).config["dtype"] == "bfloat16"


def test_identity(kit: SimpleNamespace, tmp_path: Path) -> None:
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"))
    copied = tmp_path / "elsewhere" / "other.gguf"
    copied.parent.mkdir()
    shutil.copyfile(file, copied)
    assert open_model(file).digest() == open_model(copied).digest() == open_model(resolve_model(str(file))).digest()
    assert open_model(file).digest() != open_model(file, torch.bfloat16).digest()
    assert checkpoint_fingerprint(resolve_model(str(file))) == checkpoint_fingerprint(resolve_model(str(copied)))
    changed = bytearray(file.read_bytes())
    changed[-64] ^= 1
    copied.write_bytes(bytes(changed))
    assert open_model(file).digest() != open_model(copied).digest()


def test_folders(kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = kit.write_gguf(folder / "a-Q8_0.gguf", kit.random_model("llama"), "Q8_0")
    (folder / "README.md").write_text("a card")
    (folder / "mmproj-a.gguf").write_bytes(b"")
    assert gguf_file(folder) == file
    stands = resolve_model(str(folder))
    assert resolve_model(str(file)) == resolve_model(str(stands)) == stands
    assert stands.name == "a-Q8_0"
    assert open_model(folder).path == open_model(stands).path == stands
    assert load_tokenizer(stands)("x")["input_ids"][0] == 0
    shutil.copyfile(file, folder / "a-Q4_0.gguf")
    with pytest.raises(InputError, match=r"several models \(a-Q4_0.gguf, a-Q8_0.gguf\); give one of these files"):
        open_model(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert gguf_file(folder) is None


def test_a_changed_file_gets_another_folder(kit: SimpleNamespace, tmp_path: Path) -> None:
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"))
    before = resolve_model(str(file))
    kit.write_gguf(file, kit.random_model("qwen2"))
    after = resolve_model(str(file))
    assert before != after
    assert json.loads((after / "config.json").read_text())["model_type"] == "qwen2"


def test_a_cache_that_cannot_be_written_is_named(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(Exception, match="set HF_HOME to a folder that can be written"):
        open_model(kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama")))


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands(kit: SimpleNamespace, tmp_path: Path) -> None:
    """The same figures from the file and from the folder that holds the same weights."""
    original = kit.random_model("llama, tied head")
    file = kit.write_gguf(tmp_path / "model.gguf", original)
    original.save_pretrained(tmp_path / "folder")
    for part in resolve_model(str(file)).glob("*token*"):
        shutil.copyfile(part, tmp_path / "folder" / part.name)
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 400)
    options = ("--dataset", str(text), "--seqlen", "64", "--windows", "2")
    rows = run("eval", "ppl", "--model", str(file), "--model", str(tmp_path / "folder"), *options)["results"]
    assert rows[0]["perplexity"] == pytest.approx(rows[1]["perplexity"], rel=1e-6)
    run("rotate", "--model", str(file), "--method", "hadamard", *options[:2], "--out", str(tmp_path / "rotated"))
    assert inspect(tmp_path / "rotated")["model_type"] == "llama"
    assert load_tokenizer(tmp_path / "rotated")("x")["input_ids"][0] == 0


def test_inspect_says_what_it_is_and_whether_it_is_read(kit: SimpleNamespace, tmp_path: Path) -> None:
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"), "Q8_0")
    for path in (file, tmp_path, resolve_model(str(file))):
        facts = inspect(path)
        assert (facts["kind"], facts["model_type"], facts["path"]) == ("GGUF", "llama", str(file))
        assert facts["read_by_dfq"] == "yes, dequantized to bfloat16"
    kit.write_gguf(file, kit.random_model("llama"), change=lambda writer: writer.add_tokenizer_pre("bloom"))
    assert inspect(file)["read_by_dfq"].startswith("no: pre-tokenizer 'bloom' is unknown to dfq")
    kit.write_gguf(file, kit.random_model("llama"), replaced={"blk.1.ffn_up.weight": None})
    assert "mlp.up_proj.weight is missing" in inspect(file)["read_by_dfq"]


@pytest.mark.parametrize("model_name", ["llama 3.1 rope", "qwen2, yarn", "gemma3, linear rope"])
def test_what_is_imported_loads_in_transformers_alone(model_name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    original = kit.random_model(model_name)
    file = kit.write_gguf(tmp_path / "model.gguf", original)
    facts = run("import", str(file), "--out", str(tmp_path / "out"))
    assert facts["source"]["format"] == "GGUF (F32)"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert model.dtype == torch.float32
    torch.testing.assert_close(kit.logits(model), kit.logits(original), rtol=1e-3, atol=1e-3)
    assert load_tokenizer(tmp_path / "out")("x")["input_ids"][0] == 0
