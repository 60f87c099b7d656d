"""`--head 4+N`: what is stored, that it is better, and who refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.inspect import inspect
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

Build = Callable[..., Path]
COUNT = 24
HEAD = "lm_head"


def settings(head: str, algorithm: str = "gptq", scheme: str = "w4a16", fake: bool = False) -> QuantizeSettings:
    return QuantizeSettings(
        QuantScheme.parse(scheme), algorithm=algorithm, head=TableScheme.parse(head), embed=TableScheme(8), fake=fake
    )


@pytest.fixture
def source(build: Build, tmp_path: Path) -> Path:
    return build(tmp_path / "source", tie_word_embeddings=True)


@pytest.fixture
def calibration(source: Path, text: Path, tmp_path: Path) -> Path:
    calibrate(source, tmp_path / "cal", CalibrateSettings(str(text), samples=4, seqlen=24, statistics=False))
    return tmp_path / "cal"


@pytest.mark.parametrize(("algorithm", "scheme"), [("gptq", "w4a16"), ("rtn", "w4a4kv4"), ("rtn", "w16a16")])
def test_frequent_rows_are_nearly_exact(
    source: Path, calibration: Path, tmp_path: Path, algorithm: str, scheme: str
) -> None:
    plain = quantize(source, calibration, tmp_path / "plain", settings("4", algorithm, scheme))
    record = quantize(source, calibration, tmp_path / "q", settings(f"4+{COUNT}", algorithm, scheme))
    assert record["linears"][HEAD]["second_rows"] == COUNT
    assert record["linears"][HEAD]["weight_error"] < plain["linears"][HEAD]["weight_error"]
    stored, exact = Checkpoint.open(tmp_path / "q"), Checkpoint.open(source).read("model.embed_tokens.weight").float()
    second = stored.read(f"{HEAD}.weight_second").long()
    assert len(second) == COUNT
    assert stored.shape(f"{HEAD}.weight_packed") == (300 + COUNT, 16)
    weights = [load_model(tmp_path / name, "float32").lm_head.dequantized() for name in ("plain", "q")]
    before, after = ((weight - exact).square().sum(1) for weight in weights)
    assert bool((after[second] < 0.08 * before[second]).all())
    others = torch.ones(300, dtype=torch.bool)
    others[second] = False
    assert torch.equal(before[others], after[others])


def test_all_ways_to_run_it_agree(source: Path, calibration: Path, tmp_path: Path) -> None:
    quantize(source, calibration, tmp_path / "q", settings(f"4+{COUNT}"))
    quantize(source, calibration, tmp_path / "fake", settings(f"4+{COUNT}", fake=True))
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        packed, twin, written = (
            load_model(tmp_path / name, "float32", fake=fake)(ids).logits
            for name, fake in (("q", False), ("q", True), ("fake", False))
        )
    assert torch.equal(twin, written)
    torch.testing.assert_close(packed, twin, rtol=0, atol=0.02 * float(twin.abs().max()))
    subject, model = Subject(tmp_path / "q"), load_model(tmp_path / "q", "float32", fake=True)
    assert torch.equal(subject.checkpoint.read(f"{HEAD}.weight"), model.lm_head.weight)
    assert torch.equal(subject.checkpoint.read_rows(f"{HEAD}.weight", 100, 177), model.lm_head.weight[100:177])
    load_model(tmp_path / "q").save_pretrained(tmp_path / "s")
    again = Checkpoint.open(tmp_path / "s")
    for part in ("weight_packed", "weight_scale", "weight_second"):
        assert torch.equal(again.read(f"{HEAD}.{part}"), Checkpoint.open(tmp_path / "q").read(f"{HEAD}.{part}"))


def test_exports_refuse_it_and_inspect_counts_weights_once(source: Path, calibration: Path, tmp_path: Path) -> None:
    quantize(source, calibration, tmp_path / "plain", settings("4"))
    quantize(source, calibration, tmp_path / "q", settings(f"4+{COUNT}"))
    for target in TARGETS.values():
        with pytest.raises(UnsupportedError):
            open_source(tmp_path / "q", target)
    with pytest.raises(UnsupportedError, match=r"second rows for 24 tokens.*`head=4`"):
        open_source(tmp_path / "q", TARGETS["gguf"])
    facts, plain = inspect(tmp_path / "q"), inspect(tmp_path / "plain")
    assert facts["parameters"] == plain["parameters"]
    assert facts["bytes"] == plain["bytes"] + COUNT * (16 + 2 + 4)
    assert facts["head"] == "4-bit symmetric, groups of 32, second rows for 24 tokens"


def test_what_cannot_have_second_rows_is_refused(source: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"head 4\+24 needs a `calibration`"):
        quantize(source, None, tmp_path / "q", settings(f"4+{COUNT}", "rtn"))
    with pytest.raises(UnsupportedError, match="has 300 tokens"):
        quantize(source, calibration, tmp_path / "q", settings("4+301"))
    with pytest.raises(UnsupportedError, match="for the head"):
        QuantizeSettings(embed=TableScheme(4, 32, True, 8), head=TableScheme(8))


def test_damaged_ids_are_refused_in_one_line(source: Path, calibration: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    quantize(source, calibration, tmp_path / "q", settings(f"4+{COUNT}"))
    file = tmp_path / "q/model.safetensors"
    tensors = load_file(file)
    good = tensors[f"{HEAD}.weight_second"]
    for bad in (good.flip(0), good + 300, good.long(), good[:-1].clone()):
        save_file({**tensors, f"{HEAD}.weight_second": bad.contiguous()}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="weight_second"):
            load_model(tmp_path / "q")
    del tensors[f"{HEAD}.weight_second"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="weight_second is missing"):
        load_model(tmp_path / "q")
