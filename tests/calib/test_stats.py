from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kurtosis
from torch import Tensor

from dfrot.calib.collect_stats import SAMPLE_ROWS, StatsCollector, sampling_ranks
from dfrot.calib.hessian import HessianSum
from dfrot.calib.stats import CLIP_RATIOS, CalibStats
from dfrot.errors import InputError, MismatchError
from dfrot.quant.activations import fake_quantize


def rows(n: int, k: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * torch.rand(k, generator=generator)


def observe(*chunks: Tensor, hessian: bool = True) -> CalibStats:
    total = sum(chunk[..., 0].numel() for chunk in chunks)
    observer = StatsCollector(chunks[0].shape[-1], sampling_ranks(total, seed=0), hessian=hessian)
    for chunk in chunks:
        observer.add(chunk)
    return observer.stats()


def test_statistics_are_the_definitions() -> None:
    x = rows(200)  # fewer than SAMPLE_ROWS: all rows are in the sample
    stats = observe(x.reshape(4, 50, 24))
    assert stats.count == 200
    assert stats.hessian is not None
    torch.testing.assert_close(stats.hessian, (2 / 200 * x.double().T @ x.double()).float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(stats.absmax, x.abs().amax(0))
    uncentred = (x.double() ** 4).mean(1) / (x.double() ** 2).mean(1) ** 2
    assert stats.kurtosis == pytest.approx(float(uncentred.mean()))
    centred = torch.cat([x, -x], 1).double().numpy()  # mean zero: then it is the usual kurtosis
    assert observe(torch.cat([x, -x], 1)).kurtosis == pytest.approx(
        float(kurtosis(centred, axis=1, fisher=False).mean())
    )


def test_wide_hessians_are_mirrored() -> None:
    x = rows(40, k=700)
    total = HessianSum()
    total.add(x[:30])
    total.add(x[30:])
    torch.testing.assert_close(total.value(), (2 / 40 * x.double().T @ x.double()).float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(total.value(), total.value().T)
    expected = total.value()
    assert torch.equal(total.take(), expected)
    assert torch.equal(total.value(), torch.zeros(700, 700))  # its memory was given back


def test_percentiles_are_right_to_a_bin() -> None:
    x = rows(250)
    stats = observe(x)
    ordered = x.abs().flatten().sort().values
    for q in (1, 50, 99, 99.9, 100):
        exact = float(ordered[math.ceil(len(ordered) * q / 100) - 1])
        assert exact <= stats.percentile(q) <= exact * 2 ** (1 / 8) * 1.0001


@pytest.mark.parametrize("symmetric", [True, False])
def test_clip_ratio_minimises_the_quantization_error(symmetric: bool) -> None:
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))  # the largest of many: clipping pays
    errors = [float((fake_quantize(x, 3, symmetric, c) - x).square().sum()) for c in CLIP_RATIOS]
    best = observe(x).best_clip(3, symmetric)
    assert best == CLIP_RATIOS[errors.index(min(errors))]
    assert best < 1.0
    assert observe(torch.eye(24)).best_clip(8, True) == 1.0


def test_chunks_do_not_matter() -> None:
    x = rows(SAMPLE_ROWS * 3)
    together, parts = observe(x), observe(x[:100], x[100:101], x[101:])
    assert together.hessian is not None
    assert parts.hessian is not None
    torch.testing.assert_close(together.hessian, parts.hessian)
    for name in ("absmax", "histogram", "clip_error", "moments"):
        assert torch.equal(getattr(together, name), getattr(parts, name)), name
    assert int(together.histogram.sum()) == SAMPLE_ROWS * 24


def test_merge_is_the_union() -> None:
    first, second = rows(60), rows(140, seed=1) * 3
    merged, together = observe(first).merge(observe(second)), observe(torch.cat([first, second]))
    assert merged.count == together.count
    assert merged.hessian is not None
    assert together.hessian is not None
    torch.testing.assert_close(merged.hessian, together.hessian, rtol=1e-5, atol=1e-6)
    assert torch.equal(merged.absmax, together.absmax)
    assert torch.equal(merged.histogram, together.histogram)
    torch.testing.assert_close(merged.clip_error, together.clip_error)
    assert merged.kurtosis == pytest.approx(together.kurtosis)


def test_merge_refuses_what_does_not_fit() -> None:
    with pytest.raises(MismatchError):
        observe(rows(5)).merge(observe(rows(5, k=8)))
    with pytest.raises(MismatchError):
        observe(rows(5)).merge(observe(rows(5), hessian=False))


def test_storage_round_trip_and_shape_check() -> None:
    stats = observe(rows(50))
    back = CalibStats.from_tensors(stats.tensors(), 24, "file")
    assert back.summary() == stats.summary()
    assert back.hessian is not None
    assert torch.equal(back.hessian, stats.hessian)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="absmax"):
        CalibStats.from_tensors(stats.tensors(), 32, "file")
    with pytest.raises(InputError, match=r"file: moments is nothing.*calibrate again"):
        CalibStats.from_tensors({k: v for k, v in stats.tensors().items() if k != "moments"}, 24, "file")


def test_zero_rows_are_harmless() -> None:
    stats = observe(torch.zeros(10, 24))
    assert stats.kurtosis == 0
    assert stats.best_clip(4, False) == 1.0
