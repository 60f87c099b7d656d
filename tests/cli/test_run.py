"""dfq run: the stages of a recipe on a tiny model; what is planned, reused, refused, resumed and checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfrot.files import read_json


@pytest.fixture
def recipe(make: Any, text: Path, tmp_path: Path) -> Path:
    expectation = {"value": 1.0, "tolerance": 1e9, "source": "none", "status": "measured"}
    value = {
        "name": "tiny",
        "model": str(make("model")),
        "dataset": str(text),
        "rotate": {"method": "hadamard", "seqlen": 64},
        "calibrate": {"samples": 3, "seqlen": 64, "hessians": False, "statistics": False},
        "quantize": {"scheme": "w4a4kv4"},
        "eval": {"seqlen": 64, "windows": 3, "kl": True},
        "expect": {"packed": {"perplexity": expectation}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_plan_runs_and_writes_nothing(dfq: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("dfrot.recipe.run.run", lambda *a, **k: pytest.fail("it ran"))
    planned = dfq("run", recipe, "--out", tmp_path / "out", "--plan", "--json").json
    assert [row["stage"] for row in planned["stages"]] == ["rotate", "calibrate", "quantize", "eval"]
    assert {row["state"] for row in planned["stages"]} == {"new"}
    shown = dfq("run", recipe, "--out", tmp_path / "out", "--plan", "--set", "quantize.damping=0.25")
    assert "0.25" in shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_of_a_model_that_is_not_here_fetches_nothing(dfq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfrot.hub.download", lambda *a: pytest.fail("it fetched"))
    monkeypatch.setattr("dfrot.recipe.run.find_local", lambda name: None)
    path = Path(__file__).resolve().parents[2] / "recipes" / "llama3-70b-w4a4kv4.yaml"
    planned = dfq("run", path, "--plan", "--json").json
    assert "would be fetched" in planned["model"]
    assert planned["out"] == "runs/llama3-70b-w4a4kv4"


def test_run_check_reuse_and_change(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = dfq("run", recipe, "--out", out, "--check", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["checks"][0]["passed"]
    for stage in ("rotated", "calibration", "packed", "eval"):
        assert read_json(out / stage / "stage.json")["request"]
    first = files(out)
    measured = ran.json["metrics"]["packed.perplexity"]

    # everything is reused: the same bytes, and nothing is made again
    ran = dfq("run", recipe, "--out", out, "--resume")
    assert ran.code == 0, ran.err
    assert "packed.perplexity" in ran.out
    assert files(out) == first
    planned = dfq("run", recipe, "--out", out, "--plan", "--json").json
    assert {row["state"] for row in planned["stages"]} == {"finished; would be reused"}

    # one changed number fails the check, with exit code 1 and the metric's name
    tight = (
        "--set",
        f"expect.packed.perplexity.value={measured * 1.1}",
        "--set",
        "expect.packed.perplexity.tolerance=0.01",
    )
    ran = dfq("run", recipe, "--out", out, "--check", *tight)
    assert ran.code == 1
    assert "packed.perplexity" in ran.err
    exact = ("--set", f"expect.packed.perplexity.value={measured!r}", "--set", "expect.packed.perplexity.tolerance=0")
    assert dfq("run", recipe, "--out", out, "--check", *exact).code == 0

    # other settings: planned as refused, refused, and made again only when told to, from that stage on
    other = ("--out", out, "--set", "quantize.damping=0.5")
    states = {row["stage"]: row["state"] for row in dfq("run", recipe, *other, "--plan", "--json").json["stages"]}
    assert "reused" in states["calibrate"]
    assert "other settings" in states["quantize"]
    ran = dfq("run", recipe, *other)
    assert ran.code == 2
    assert "packed" in ran.err
    assert "--overwrite" in ran.err
    ran = dfq("run", recipe, *other, "--overwrite", "--json")
    assert ran.code == 0, ran.err
    changed = files(out)
    assert changed["rotated/model.safetensors"] == first["rotated/model.safetensors"]
    assert changed["packed/stage.json"] != first["packed/stage.json"]


def test_a_seed_on_the_command_line_replaces_the_recipes(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    def seed(*more: object) -> int:
        ran = dfq("run", recipe, "--out", tmp_path / "out", "--plan", "--json", *more)
        return int(ran.json["stages"][0]["settings"]["seed"])

    assert seed("--set", "seed=3") == 3
    assert seed("--set", "seed=3", "--seed", 4) == 4


def test_export_is_a_stage(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    weights = ("--set", "rotate.online=false", "--set", "quantize.scheme=w4a16", "--set", "eval=null")
    given = ("run", recipe, *weights, "--set", "expect=null", "--out", tmp_path / "out")
    assert dfq(*given, "--set", "export.to=compressed-tensors").code == 0
    config = read_json(tmp_path / "out" / "exported" / "config.json")
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    wrong = dfq(*given, "--set", "export.to=onnx")
    assert wrong.code == 2
    assert "compressed-tensors or gguf or gptq" in wrong.err


def test_a_foreign_folder_is_left_alone(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    ran = dfq("run", recipe, "--out", tmp_path / "mine", "--overwrite")
    assert ran.code == 2
    assert "holds no run" in ran.err
    assert dfq("run", recipe, "--out", tmp_path / "none", "--resume").code == 2
    assert not (tmp_path / "none").exists()


PLACES = (
    "dfrot.stages.rotate.run.gate",
    "dfrot.stages.quantize.run.quantize_block",
    "dfrot.stages.evaluate.perplexity.window_losses",
)


def test_interrupted_anywhere_it_ends_in_the_same_bytes(
    dfq: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dfq("run", recipe, "--out", tmp_path / "straight").code == 0

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for place in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            assert dfq("run", recipe, "--out", tmp_path / "resumed").code == 130
        assert not (tmp_path / "resumed" / "run.json").exists()
    assert dfq("run", recipe, "--out", tmp_path / "resumed", "--resume").code == 0
    assert files(tmp_path / "resumed") == files(tmp_path / "straight")


def test_what_a_killed_write_leaves_is_swept(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    """A process that dies between writing aside and renaming leaves a file with a name of its own."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".recipe.json.k1ll3d_9").write_bytes(b'{"keys": {')
    assert dfq("run", recipe, "--out", out).code == 0
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert dfq("run", recipe, "--out", other).code == 2
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_killed_outright_it_ends_in_the_same_bytes(dfq: Any, recipe: Path, tmp_path: Path) -> None:
    assert dfq("run", recipe, "--out", tmp_path / "straight").code == 0
    out = tmp_path / "killed"
    code = "from dfrot_cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "run", str(recipe), "--out", str(out)]
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    end = time.monotonic() + 60
    while not (out / "rotated").exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (out / "rotated").exists(), "it never came to its second stage"
    assert not (out / "run.json").exists(), "it was done before it was killed"
    assert dfq("run", recipe, "--out", out).code == 0
    assert files(out) == files(tmp_path / "straight")
