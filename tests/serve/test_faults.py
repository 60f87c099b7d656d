"""A minute of vanishing clients, huge and malformed bodies and cancelled streams: right answers, nothing grows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dfrot import reference
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot_kernels import native


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not native.active(), reason="no native library")
def test_a_minute_of_faults_leaves_nothing_behind(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    quantize(reference.path(), None, packed, QuantizeSettings(QuantScheme.parse("w4a4kv4"), algorithm="rtn"))
    script = _script()
    result = script.soak(str(packed), 60)
    assert not script.failures(result), result
    assert result["sent"]["answers"] > 0
    assert "in a step" in result["batching"]
