"""--effort: what each means, contradictions, and tuning that resumes to the same bytes at both phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize import effort, run
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.tune.settings import TuneSettings
from dfrot.stages.tune.trainer import AdamW

SCHEME = QuantScheme.parse("w4a8kv4")
HIGH = QuantizeSettings(SCHEME, effort="high", tune_steps=2)


@pytest.fixture(scope="module")
def model(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("effort") / "model", online=True)


@pytest.fixture
def cal(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(text.parent)  # records name a file by its last part
    monkeypatch.setattr(
        effort, "TuneSettings", lambda **given: TuneSettings(batch=1, seqlen=32, held_out=1, evaluations=2, **given)
    )
    calibrate(model, tmp_path / "cal", CalibrateSettings(dataset=str(text), samples=4, seqlen=32, statistics=False))
    return tmp_path / "cal"


def same(a: Path, b: Path) -> None:
    for name in ("model.safetensors", "config.json", "stage.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_quick_is_rounding_to_nearest_and_reads_no_calibration(model: Path, cal: Path, tmp_path: Path) -> None:
    record = quantize(model, None, tmp_path / "quick", QuantizeSettings(SCHEME, effort="quick"))
    quantize(model, None, tmp_path / "rtn", QuantizeSettings(SCHEME, algorithm="rtn"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("quick", "rtn")]
    assert weights[0] == weights[1]
    assert record["request"]["settings"]["effort"] == "quick"
    assert "effort" not in quantize(model, cal, tmp_path / "default", QuantizeSettings(SCHEME))["request"]["settings"]
    with pytest.raises(InputError, match="`effort` quick reads no `calibration`"):
        quantize(model, cal, tmp_path / "out", QuantizeSettings(SCHEME, effort="quick"))
    assert QuantizeSettings(SCHEME, effort="quick", algorithm="gptq").algorithm == "gptq"
    assert QuantizeSettings(SCHEME).algorithm == "gptq"


def test_high_tunes_what_default_makes(model: Path, cal: Path, tmp_path: Path) -> None:
    record = quantize(model, cal, tmp_path / "high", HIGH)
    quantize(model, cal, tmp_path / "default", QuantizeSettings(SCHEME))
    before, after = (Checkpoint.open(tmp_path / name) for name in ("default", "high"))
    assert list(before.entries) == list(after.entries)
    changed = {name for name in before.entries if not torch.equal(before.read(name), after.read(name))}
    history = [entry["divergence"] for entry in record["tuning"]["history"]]
    assert len(history) == 3
    assert bool(changed) == (min(history) < history[0])
    assert all(name.endswith(("weight_scale", "norm.weight")) for name in changed)
    assert record["request"]["tuning"]["settings"]["dataset"] == "words.txt"
    assert sorted(path.name for path in (tmp_path / "high").iterdir()) == sorted(
        path.name for path in (tmp_path / "default").iterdir()
    )


@pytest.mark.parametrize("where", ["between", "inside", "writing"])
def test_a_killed_run_ends_in_the_same_bytes(
    where: str, model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QuantizeSettings(SCHEME, effort="high", tune_steps=3)
    quantize(model, cal, tmp_path / "whole", settings)
    with monkeypatch.context() as killed:
        calls: list[int] = []

        def dies_after(count: int, function: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls.append(0)
                if len(calls) > count:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)

            return wrapped

        if where == "between":
            killed.setattr(run, "tune_quantized", dies_after(0, None))
        elif where == "inside":
            killed.setattr(AdamW, "step", dies_after(2, AdamW.step))
        else:
            killed.setattr(effort, "SafetensorsWriter", lambda *a, **k: _Failing(*a, **k))
        with pytest.raises(KeyboardInterrupt):
            quantize(model, cal, tmp_path / "cut", settings)
    assert not (tmp_path / "cut").exists()
    quantize(model, cal, tmp_path / "cut", settings, resume=True)
    same(tmp_path / "cut", tmp_path / "whole")


class _Failing(SafetensorsWriter):
    """Dies after three tensors."""

    written = 0

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self.written += 1
        if self.written > 3:
            raise KeyboardInterrupt
        super().write(name, tensor)


def test_what_contradicts_an_effort_is_refused(
    model: Path, cal: Path, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, message in (
        ({"effort": "quick", "a_clip": "auto"}, "`effort` quick reads no calibration"),
        ({"effort": "high", "fake": True}, "a simulated checkpoint cannot be tuned"),
        ({"effort": "high", "scheme": QuantScheme.parse("w16a4kv4")}, "16-bit weights cannot be tuned yet"),
        ({"tune_steps": 3}, "`tune_steps` belongs to `effort=high`"),
        ({"tune_dataset": "stdlib", "effort": "quick"}, "`tune_dataset` belongs to `effort=high`"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            QuantizeSettings(**{"scheme": SCHEME, **given})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`effort` 'fast': choose one of quick, default, high"):
        QuantizeSettings(SCHEME, effort="fast")
    out = tmp_path / "out"
    with pytest.raises(InputError, match="effort high needs a `calibration`"):
        quantize(model, None, out, QuantizeSettings(SCHEME, algorithm="rtn", effort="high"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"words\.txt, which cannot be read .*give `tune_dataset`"):
        quantize(model, cal, out, HIGH)
    Path("words.txt").write_text("another text " * 500)
    with pytest.raises(InputError, match=r"is not the text that .* was made on"):
        quantize(model, cal, out, HIGH)
    assert not out.exists()
    assert not (tmp_path / ".out.partial").exists()
