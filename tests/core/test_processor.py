"""float32 products by oneDNN: still float32, and the process's setting is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dfrot import processor

matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = getattr(matmul, "fp32_precision", None)
    yield
    if matmul is not None:
        matmul.fp32_precision = before
    processor._onednn_is_exact.cache_clear()


def test_products_stay_float32() -> None:
    x = torch.randn(300, 700, generator=torch.Generator().manual_seed(1))
    with processor.onednn_products():
        gram = x @ x.T
    exact = x.double() @ x.double().T
    assert float((gram - exact).norm() / exact.norm()) < 2.0**-19  # of bfloat16 operands: 2^-9


@pytest.mark.skipif(matmul is None, reason="torch before 2.9 has no setting per backend")
def test_the_setting_of_the_process_is_left_as_it_was() -> None:
    before = matmul.fp32_precision
    with processor.onednn_products(), processor.onednn_products():
        assert processor._onednn_is_exact() == (matmul.fp32_precision == "bf16")
    assert matmul.fp32_precision == before

    @processor.onednn_products()
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert matmul.fp32_precision == before == "none"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(matmul is None, reason="torch before 2.9 has no setting per backend")
def test_what_the_caller_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul.fp32_precision = "ieee"
    with processor.onednn_products():
        assert matmul.fp32_precision == "ieee"
    matmul.fp32_precision = "none"
    monkeypatch.setattr(processor, "PROBE_ERROR", 0.0)  # as on a processor where oneDNN takes the permission
    with processor.onednn_products():
        assert matmul.fp32_precision == "none"
    assert matmul.fp32_precision == "none"
