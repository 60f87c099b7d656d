"""Bad input through the command: one line naming file, tensor and remedy, exit code 2, nothing under the final name."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.files import read_json, write_json

Usage = namedtuple("Usage", "total used free")
Q = "model.layers.1.self_attn.q_proj.weight"


class Case:
    """A checkpoint, a text, and the command that must refuse."""

    def __init__(self, dfq: Any, make: Any, rewrite: Any, text: Path, tmp_path: Path) -> None:
        self.dfq, self.make, self.rewrite, self.text = dfq, make, rewrite, text
        self.out = tmp_path / "result" / "out"
        self.out.parent.mkdir()

    def rotate(self, folder: Path, *more: object) -> Any:
        common = ("--dataset", self.text, "--seqlen", 32, "--out", self.out)
        return self.dfq("rotate", "--model", folder, "--method", "hadamard", *common, *more)

    def refused(self, ran: Any, *fragments: object, clean: bool = True) -> None:
        """clean: nothing at all was left, not even work to resume."""
        assert ran.code == 2, (ran.code, ran.err)
        assert ran.out == ""
        lines = ran.err.strip().splitlines()
        assert len(lines) == 1, ran.err
        assert lines[0].startswith("Error: ")
        for fragment in fragments:
            assert str(fragment) in lines[0], f"{fragment!r} is not in {lines[0]!r}"
        assert not self.out.exists()
        if clean:
            assert list(self.out.parent.iterdir()) == []


@pytest.fixture
def case(dfq: Any, make: Any, rewrite: Any, text: Path, tmp_path: Path) -> Case:
    return Case(dfq, make, rewrite, text, tmp_path)


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_missing_shard(case: Case) -> None:
    folder = case.make(shards=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    case.refused(case.rotate(folder), shard, "missing", "copy")


def test_truncated_shard(case: Case) -> None:
    folder = case.make(shards=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    case.refused(case.rotate(folder), shard, "tensor ", "truncated", "copy the file again")


def test_corrupted_header(case: Case) -> None:
    folder = case.make()
    data = bytearray(weights(folder).read_bytes())
    data[8:40] = b"\xff" * 32
    weights(folder).write_bytes(data)
    case.refused(case.rotate(folder), weights(folder), "not JSON", "copy the file again")


def test_header_that_lies_about_its_length(case: Case) -> None:
    folder = case.make()
    data = bytearray(weights(folder).read_bytes())
    data[:8] = (1 << 60).to_bytes(8, "little")
    weights(folder).write_bytes(data)
    case.refused(case.rotate(folder), weights(folder), "copy the file again")


@pytest.mark.parametrize("target", ["../elsewhere.safetensors", "/etc/passwd", "..", "sub/../../x.safetensors"])
def test_index_that_points_outside(case: Case, target: str) -> None:
    folder = case.make(shards=True)
    index = folder / "model.safetensors.index.json"
    value = read_json(index)
    value["weight_map"][Q] = target
    write_json(index, value)
    case.refused(case.rotate(folder), index, Q, "not a file of this folder", "restore the index")


def test_wrong_shape(case: Case) -> None:
    folder = case.make()
    case.rewrite(folder, {Q: torch.zeros(32, 16, dtype=torch.bfloat16)})
    case.refused(case.rotate(folder), weights(folder), Q, "[32, 16]", "[32, 32]")


def test_wrong_dtype(case: Case) -> None:
    folder = case.make()
    case.rewrite(folder, {Q: torch.zeros(32, 32, dtype=torch.int32)})
    case.refused(case.rotate(folder), weights(folder), Q, "int32", "fetch it again")


def test_unknown_dtype(case: Case) -> None:
    folder = case.make()
    raw = weights(folder).read_bytes()
    weights(folder).write_bytes(raw.replace(b'"BF16"', b'"C128"', 1))
    case.refused(case.rotate(folder), weights(folder), "C128", "not supported")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf(case: Case, value: float) -> None:
    folder = case.make()
    bad = torch.zeros(32, 32, dtype=torch.bfloat16)
    bad[3, 7] = value
    case.rewrite(folder, {Q: bad})
    case.refused(case.rotate(folder), weights(folder), Q, "NaN or Inf", "fetch them again", clean=False)


def test_missing_tensor(case: Case) -> None:
    folder = case.make()
    case.rewrite(folder, {Q: None})
    case.refused(case.rotate(folder), folder, Q, "missing")


def test_tensor_nobody_described(case: Case) -> None:
    folder = case.make()
    case.rewrite(folder, {"model.layers.1.self_attn.extra.weight": torch.zeros(2, dtype=torch.bfloat16)})
    case.refused(case.rotate(folder), weights(folder), "self_attn.extra.weight", "config.json")


def test_pickled_weights_only(case: Case) -> None:
    folder = case.make()
    weights(folder).rename(folder / "pytorch_model.bin")
    case.refused(case.rotate(folder), folder, "*.bin", "safetensors")


def test_config_that_is_not_json(case: Case) -> None:
    folder = case.make()
    (folder / "config.json").write_text("{")
    case.refused(case.rotate(folder), folder / "config.json", "restore the file")


def test_unknown_architecture(case: Case) -> None:
    folder = case.make()
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "model_type": "lama"})
    case.refused(case.rotate(folder), folder / "config.json", "'lama'", "known: llama", "nearest: llama", "dfrot/arch")


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "gemma3_text"])
def test_post_norm_architectures_have_no_r1(case: Case, kind: str) -> None:
    folder = case.make(model_type=kind)
    where = folder / "config.json"
    refined = case.dfq("rotate", "--model", folder, "--dataset", case.text, "--seqlen", 32, "--out", case.out)
    case.refused(refined, where, kind, "R1 cannot be fused", "layernorm", "gain", "take --method hadamard")
    planned = case.rotate(folder, "--plan")
    done = case.rotate(folder)
    assert planned.code == done.code == 0, done.err
    for said in (planned.out, done.out):
        assert " ".join(said.split()).count(f"R1 none: {kind}: R1 cannot be fused") == 1, said


def test_rotated_twice(case: Case) -> None:
    folder = case.make()
    assert case.rotate(folder).code == 0
    again = case.dfq("rotate", "--model", case.out, "--dataset", case.text, "--out", case.out.parent / "twice")
    assert again.code == 2
    assert "rotated" in again.err
    assert "original" in again.err
    assert not (case.out.parent / "twice").exists()


def test_a_packed_checkpoint_in_place_of_a_16_bit_one(case: Case) -> None:
    packed = case.out.parent.parent / "packed"
    assert case.dfq("quantize", "--model", case.make(), "--algorithm", "rtn", "--out", packed).code == 0
    case.refused(case.rotate(packed), packed, "is quantized already; give the 16-bit checkpoint")
    for command in ("calibrate", "compare"):
        ran = case.dfq(command, "--model", packed, "--dataset", case.text, "--seqlen", 32, "--out", case.out)
        case.refused(ran, packed, "is quantized already; give the 16-bit checkpoint")


def test_no_tokenizer(case: Case) -> None:
    folder = case.make()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    case.refused(case.rotate(folder), folder, "tokenizer")


def test_dataset_too_short(case: Case) -> None:
    folder = case.make()
    case.text.write_text("too short")
    ran = case.dfq("rotate", "--model", folder, "--dataset", case.text, "--seqlen", 64, "--out", case.out)
    case.refused(ran, "too short", "64", "--seqlen")
    ran = case.dfq("calibrate", "--model", folder, "--dataset", case.text, "--seqlen", 64, "--out", case.out)
    case.refused(ran, "too short", "64", "--seqlen")
    ran = case.dfq("eval", "ppl", "--model", folder, "--dataset", case.text, "--seqlen", 64)
    case.refused(ran, "too short", "64", "--seqlen")


def test_no_such_dataset(case: Case) -> None:
    ran = case.dfq("calibrate", "--model", case.make(), "--dataset", "wikitext-3", "--out", case.out)
    case.refused(ran, "wikitext-3", "wikitext2", "stdlib")


def test_wikitext_without_network(case: Case) -> None:
    ran = case.dfq("calibrate", "--model", case.make(), "--dataset", "wikitext2", "--out", case.out)
    case.refused(ran, "wikitext2", "--dataset")


def test_no_disk_space(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = case.make()
    calibration = case.out.parent.parent / "calibration"
    sample = ("--dataset", case.text, "--seqlen", 32, "--samples", 2)
    assert case.dfq("calibrate", "--model", folder, *sample, "--out", calibration).code == 0
    monkeypatch.setattr("dfrot.files.shutil.disk_usage", lambda path: Usage(10**12, 10**12, 1000))
    case.refused(case.rotate(folder), "GB of disk", "--out")
    case.refused(case.dfq("calibrate", "--model", folder, *sample, "--out", case.out), "GB of disk", "--out")
    ran = case.dfq("quantize", "--model", folder, "--calibration", calibration, "--out", case.out)
    case.refused(ran, "GB of disk", "--out")


def test_existing_output_is_not_touched(case: Case) -> None:
    folder = case.make()
    case.out.mkdir()
    (case.out / "precious.txt").write_text("mine")
    for ran in (
        case.rotate(folder),
        case.dfq("calibrate", "--model", folder, "--dataset", case.text, "--seqlen", 32, "--out", case.out),
        case.dfq("quantize", "--model", folder, "--algorithm", "rtn", "--out", case.out),
        case.dfq("compare", "--model", folder, "--dataset", case.text, "--seqlen", 32, "--out", case.out),
        case.dfq("eval", "ppl", "--model", folder, "--dataset", case.text, "--seqlen", 32, "--out", case.out),
    ):
        assert ran.code == 2
        assert str(case.out) in ran.err
        assert "--overwrite" in ran.err
        assert [path.name for path in case.out.parent.iterdir()] == ["out"]
        assert (case.out / "precious.txt").read_text() == "mine"


def test_calibration_of_another_model(case: Case) -> None:
    one, other = case.make("one"), case.make("other", seed=1)
    calibration = case.out.parent.parent / "calibration"
    sample = ("--dataset", case.text, "--seqlen", 32, "--samples", 2)
    assert case.dfq("calibrate", "--model", one, *sample, "--out", calibration).code == 0
    ran = case.dfq("quantize", "--model", other, "--calibration", calibration, "--out", case.out)
    case.refused(ran, calibration, "another checkpoint")


def test_something_else_as_calibration(case: Case) -> None:
    folder = case.make()
    ran = case.dfq("quantize", "--model", folder, "--calibration", folder, "--out", case.out)
    case.refused(ran, folder)
    case.refused(case.dfq("quantize", "--model", folder, "--out", case.out), "dfq calibrate", "--calibration")


def test_rotation_of_another_model(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted rotation cannot be continued on other weights."""
    one, other = case.make("one"), case.make("other", seed=1)

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dfrot.stages.rotate.run.gate", interrupt)
        assert case.rotate(one).code == 130
    assert not case.out.exists()
    case.refused(case.rotate(other, "--resume"), "another request", "--no-resume", clean=False)
    assert case.rotate(one, "--resume").code == 0


def test_damaged_rotation_file(case: Case) -> None:
    """The rotation beside a checkpoint is checked like any weight."""
    from dfrot.errors import DfqError
    from dfrot.rotation.rotation import Rotation

    folder = case.make()
    assert case.rotate(folder).code == 0
    file = case.out / "rotation.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DfqError, match="truncated"):
        Rotation.load(file)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--gamma", "much"], "gamma"),
        (["--massive-rule", "vibes"], "massive rule"),
        (["--massive-rule", "energy:2"], "threshold"),
    ],
)
def test_bad_options_of_rotate(case: Case, options: list[str], fragment: str) -> None:
    case.refused(case.rotate(case.make(), *options), fragment)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--scheme", "int4"], "w4a4kv4"),
        (["--scheme", "w1a4"], "w2..w8"),
        (["--algorithm", "rtn", "--keep", "no_such_linear"], "no_such_linear"),
        (["--algorithm", "rtn", "--a-clip", "tight"], "--a-clip"),
        (["--damping", "7"], "damping"),
    ],
)
def test_bad_options_of_quantize(case: Case, options: list[str], fragment: str) -> None:
    case.refused(case.dfq("quantize", "--model", case.make(), "--out", case.out, *options), fragment)


def test_foreign_quantization(case: Case) -> None:
    folder = case.make()
    config = {**read_json(folder / "config.json"), "quantization_config": {"quant_method": "quip"}}
    write_json(folder / "config.json", config)
    case.refused(case.rotate(folder), folder / "config.json", "quip", "original")


def test_remote_code_is_dropped(case: Case) -> None:
    folder = case.make()
    write_json(
        folder / "config.json",
        {**read_json(folder / "config.json"), "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    )
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert case.rotate(folder).code == 0
    assert "auto_map" not in json.loads((case.out / "config.json").read_text())
    assert not list(case.out.glob("*.py"))
    shutil.rmtree(case.out)
