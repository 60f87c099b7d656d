"""`dfq import`: the written folder holds what the view reads, loads without dfq, and survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError
from dfrot.inputs import open_model
from dfrot.lineage import source_record
from dfrot.stages.imports.run import import_model, plan
from dfrot.stages.imports.settings import ImportSettings
from dfrot_cli.main import main

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from dfrot.stages.imports import run
run.UNIT_BYTES = 1 << 17
run.import_model(Path({model!r}), Path({out!r}), progress=lambda *step: print(*step, flush=True))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [None, "bf16", "f16", "f32"])
def test_the_folder_holds_what_the_view_reads(fp8_model: Path, tmp_path: Path, dtype: str | None) -> None:
    names = {None: torch.bfloat16, "bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    record = import_model(fp8_model, tmp_path / "out", ImportSettings(dtype=dtype))  # type: ignore[arg-type]
    view, written = open_model(fp8_model, names[dtype]), Checkpoint.open(tmp_path / "out")
    assert set(written.entries) == set(view.entries)
    for name in view.entries:
        assert written.entry(name).dtype == names[dtype]
        assert torch.equal(written.read(name), view.read(name)), name
    assert written.config == {**view.config, "dtype": str(names[dtype]).removeprefix("torch.")}
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (fp8_model / "tokenizer.json").read_bytes()
    assert record["source"]["format"] == "FP8 (e4m3)"
    assert record["source"]["left_out"] == ["rounding of activations to FP8"]
    assert record["weights"] == written.digest()


def test_the_hub_commit_survives_the_import(fp8_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    snapshot.parent.mkdir(parents=True)
    fp8_model.rename(snapshot)
    record = import_model(snapshot, tmp_path / "out")
    assert record["hub"] == {"hub_id": "org/name", "commit": "c0ffee"} == source_record(tmp_path / "out")["hub"]


def test_transformers_computes_the_same_from_it_as_from_the_source(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Sizes are multiples of the block: of others, transformers' dequantizing load takes the scales' grid for even."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    dense = kit.dense_tensors(intermediate_size=256)
    tensors = kit.quantized_tensors(dense, kit.fp8_blocks)
    fp8_model = kit.write_folder(tmp_path / "fp8", tensors, kit.FP8, intermediate_size=256)
    import_model(fp8_model, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(
        fp8_model, dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    tokens = torch.arange(24)[None] * 11
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_killed_at_any_unit_it_ends_in_the_same_bytes(fp8_model: Path, tmp_path: Path) -> None:
    import_model(fp8_model, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    code = SCRIPT.format(path=[p for p in sys.path if p], model=str(fp8_model), out=str(tmp_path / "out"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.split()[1] == "3":
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / ".out.partial/journal.jsonl").read_text().splitlines()) == 3
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert contents(tmp_path / "out") == expected
    with pytest.raises(DfqError, match="already exists"):
        import_model(fp8_model, tmp_path / "out")
    assert import_model(fp8_model, tmp_path / "out", resume=True)["kind"] == "import"


def test_what_needs_no_import_is_refused(kit: SimpleNamespace, fp8_model: Path, tmp_path: Path) -> None:
    plain = kit.write_folder(tmp_path / "plain", kit.dense_tensors(), None)
    with pytest.raises(DfqError, match="is an ordinary checkpoint already"):
        import_model(plain, tmp_path / "out")
    import_model(plain, tmp_path / "half", ImportSettings(dtype="f16"))
    assert Checkpoint.open(tmp_path / "half").entry("lm_head.weight").dtype == torch.float16
    with pytest.raises(DfqError, match="is an input of this command"):
        import_model(fp8_model, fp8_model)
    own = kit.write_folder(tmp_path / "own", kit.dense_tensors(), {"quant_method": "dfq", "format_version": 1})
    with pytest.raises(DfqError, match="is dfq's own"):
        import_model(own, tmp_path / "out", ImportSettings(dtype="f16"))
    assert not list(tmp_path.glob(".out*"))


def test_values_beyond_float16_are_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    tensors = kit.dense_tensors()
    tensors["lm_head.weight"][3, 5] = 1e6
    folder = kit.write_folder(tmp_path / "m", tensors, None)
    with pytest.raises(DfqError, match=r"tensor lm_head\.weight: holds NaN or Inf .* to torch\.float16"):
        import_model(folder, tmp_path / "out", ImportSettings(dtype="f16"))


def test_command(fp8_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(main, ["import", str(fp8_model), "--out", str(out), "--plan", "--json"])
    document = json.loads(run.stdout)
    assert document["inputs"]["format"] == "FP8 (e4m3)"
    assert not out.exists()
    assert plan(fp8_model, ImportSettings())["bytes"] == int(document["inputs"]["bytes"])
    run = CliRunner().invoke(main, ["import", str(fp8_model), "--out", str(out), "--dtype", "f32"])
    assert run.exit_code == 0, run.stderr
    assert "FP8 (e4m3)" in run.stdout
    assert open_model(out).entry("lm_head.weight").dtype == torch.float32
    run = CliRunner().invoke(main, ["import", str(tmp_path / "nowhere"), "--out", str(out)])
    assert run.exit_code == 2
    assert run.stderr.count("\n") == 1
