"""A small recipe, and the fixture that writes it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BASE = """
name: small
model: reference
dataset: stdlib
rotate: {method: hadamard}
calibrate: {samples: 4, seqlen: 64}
quantize: {scheme: w4a4kv4}
eval: {seqlen: 64, kl: true}
expect:
  packed:
    perplexity: {value: 30, tolerance: 0.02, source: us, status: measured}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str = BASE) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return make
