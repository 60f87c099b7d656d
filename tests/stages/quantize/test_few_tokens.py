"""A calibration that is too short for the widest input: GPTQ runs, and says so."""

from __future__ import annotations

from pathlib import Path

from dfrot.quant.scheme import QuantScheme
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings


def test_few_tokens_for_wide_inputs_are_said(model: Path, text: Path, tmp_path: Path) -> None:
    for samples in (2, 8):
        few = CalibrateSettings(str(text), samples=samples, seqlen=24, statistics=False)
        calibrate(model, tmp_path / f"cal{samples}", few)
        record = quantize(model, tmp_path / f"cal{samples}", tmp_path / f"q{samples}", QuantizeSettings())
        if samples == 2:
            (note,) = record["notes"]
            assert note.startswith("the calibration has 48 tokens, 1 for each of the 48 columns of the widest input")
        else:
            assert "notes" not in record
    rounded = QuantizeSettings(QuantScheme(), algorithm="rtn", key_shift="none")
    assert "notes" not in quantize(model, None, tmp_path / "rtn", rounded)
