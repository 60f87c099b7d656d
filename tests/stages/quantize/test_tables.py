"""Quantized embedding and head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import open_described
from dfrot.calib.calibration import Calibration
from dfrot.calib.hessian import HessianSum
from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.embedding import QuantEmbedding
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.rounding import gptq, rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot_kernels.layouts import PackedWeight

Build = Callable[..., Path]
EMBED, HEAD = "model.embed_tokens", "lm_head"
TABLES = [("8", "8"), ("8-g16", "4"), ("4", "4-g16-asym"), ("4-g0-asym", "16"), ("16", "8")]


def settings(embed: str, head: str, scheme: str = "w4a4kv4", **changes: Any) -> QuantizeSettings:
    tables = {"embed": TableScheme.parse(embed), "head": TableScheme.parse(head)}
    return QuantizeSettings(QuantScheme.parse(scheme), **tables, **changes)


def calibrated(model: Path, text: Path, out: Path) -> Path:
    calibrate(model, out, CalibrateSettings(str(text), samples=4, seqlen=24, statistics=False))
    return out


def stored(folder: Path, name: str, table: TableScheme) -> PackedWeight:
    checkpoint = Checkpoint.open(folder)
    zero = None if table.symmetric else checkpoint.read(f"{name}.weight_zero")
    packed, scale = checkpoint.read(f"{name}.weight_packed"), checkpoint.read(f"{name}.weight_scale")
    return PackedWeight(packed, scale, zero, table.bits, table.group, (300, 32))


def logits(folder: Path, fake: bool = False) -> torch.Tensor:
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return load_model(folder, fake=fake)(ids).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("embed", "head"), TABLES)
@pytest.mark.parametrize("tied", [False, True])
def test_rounded_tables_lie_on_their_grid_and_load(
    build: Build, tmp_path: Path, embed: str, head: str, tied: bool
) -> None:
    source = build(tmp_path / "source", online=True, tie_word_embeddings=tied)
    if tied and head == "16":
        with pytest.raises(UnsupportedError, match=r"`embed`.*`head`"):
            quantize(source, None, tmp_path / "q", settings(embed, head, algorithm="rtn"))
        return
    record = quantize(source, None, tmp_path / "q", settings(embed, head, algorithm="rtn"))
    dense = Checkpoint.open(source)
    for name, text in ((EMBED, embed), (HEAD, head)):
        table = TableScheme.parse(text)
        weight = dense.read(f"{EMBED if tied else name}.weight").float()
        if not table.quantized:
            assert torch.equal(Checkpoint.open(tmp_path / "q").read(f"{name}.weight").float(), weight)
            continue
        scheme = QuantScheme(w_bits=table.bits, w_group=table.group, w_sym=table.symmetric)
        signed = table.bits == 4 and table.symmetric
        expected = rtn.quantize(weight, None, scheme, AlgorithmOptions(signed_scales=signed))
        assert bool((expected.grid.scale < 0).any()) == signed
        assert torch.equal(stored(tmp_path / "q", name, table).codes(), expected.codes)
        assert torch.equal(stored(tmp_path / "q", name, table).dequantize(), expected.dequantize())
        assert record["linears"][name]["weight_error"] == pytest.approx(expected.stats["weight_error"], rel=1e-4)
    model = load_model(tmp_path / "q")
    assert isinstance(model.model.embed_tokens, QuantEmbedding) == (embed != "16")
    assert isinstance(model.lm_head, QuantLinear) == (head != "16")
    quantize(source, None, tmp_path / "fake", settings(embed, head, algorithm="rtn", fake=True))
    packed, twin, written = logits(tmp_path / "q"), logits(tmp_path / "q", fake=True), logits(tmp_path / "fake")
    assert torch.equal(twin, written)
    assert torch.allclose(packed, twin, rtol=0, atol=0.02 * float(twin.abs().max()))


def test_gptq_of_the_head_minimises_its_output_error(build: Build, text: Path, tmp_path: Path) -> None:
    """The stored integers are those of GPTQ on the unquantized activations of the quantized model, and better there
    than rounding."""
    source = build(tmp_path / "source")
    cal = calibrated(source, text, tmp_path / "cal")
    table = TableScheme.parse("4-g16")
    record = quantize(source, cal, tmp_path / "q", settings("8", "4-g16"))
    stats = record["linears"][HEAD]
    assert stats["algorithm"] == "gptq"
    assert stats["output_error"] < 0.9 * stats["output_error_rtn"]
    # an independent walk: the hidden states that the simulated model feeds to its head
    checkpoint, arch = open_described(source)
    tokens = Calibration.open(cal, arch, checkpoint.digest()).tokens()
    model = load_model(tmp_path / "q", "float32", fake=True)
    total = HessianSum()
    with torch.no_grad():
        total.add(model.model(tokens, use_cache=False).last_hidden_state.reshape(-1, 32))
    weight = checkpoint.read(f"{HEAD}.weight").float()
    scheme = QuantScheme(w_bits=4, w_group=16)
    expected = gptq.quantize(weight, total.value(), scheme, AlgorithmOptions(signed_scales=True, fit_scales=True))
    packed = stored(tmp_path / "q", HEAD, table)
    assert int((packed.codes() != expected.codes).sum()) <= 0.02 * expected.codes.numel()  # sums in another order
    assert float((packed.scale != expected.grid.scale).float().mean()) <= 0.1
    assert bool((packed.scale < 0).any())


def test_a_head_of_8_bits_keeps_the_scales_of_its_rows(build: Build, text: Path, tmp_path: Path) -> None:
    """Only few levels are worth fitting: bytes of 8-bit tables are those of the plain algorithm."""
    source = build(tmp_path / "source")
    quantize(source, calibrated(source, text, tmp_path / "cal"), tmp_path / "q", settings("8", "8"))
    weight = Checkpoint.open(source).read(f"{HEAD}.weight").float()
    expected = rtn.quantize(weight, None, QuantScheme(w_bits=8)).grid.scale
    assert torch.equal(stored(tmp_path / "q", HEAD, TableScheme(8)).scale, expected)


def test_blocks_are_quantized_on_what_the_rounded_embedding_feeds(build: Build, text: Path, tmp_path: Path) -> None:
    source = build(tmp_path / "source")
    cal = calibrated(source, text, tmp_path / "cal")
    quantize(source, cal, tmp_path / "exact", settings("16", "8"))
    quantize(source, cal, tmp_path / "rounded", settings("4-g0", "8"))
    name = "model.layers.0.self_attn.q_proj.weight_packed"
    one, other = (Checkpoint.open(tmp_path / folder).read(name) for folder in ("exact", "rounded"))
    assert not torch.equal(one, other)


def test_a_quantized_head_leaves_keep_and_activation_clips(build: Build, text: Path, tmp_path: Path) -> None:
    source = build(tmp_path / "source")
    calibrate(source, tmp_path / "cal", CalibrateSettings(str(text), samples=4, seqlen=24))
    quantize(source, tmp_path / "cal", tmp_path / "q", settings("16", "8", keep=(), a_clip="auto"))
    config = DfqConfig.of(Checkpoint.open(tmp_path / "q").config)
    assert config is not None
    assert (config.keep, config.head) == ((), TableScheme(8))
    assert HEAD not in config.a_clips
    assert load_model(tmp_path / "q").lm_head.plan.a_bits == 16


def test_tables_of_a_16_bit_scheme(build: Build, tmp_path: Path) -> None:
    source = build(tmp_path / "source")
    quantize(source, None, tmp_path / "q", settings("8", "8", "w16a16", algorithm="rtn"))
    config = Checkpoint.open(tmp_path / "q")
    assert {name.rsplit(".", 1)[-1] for name in config.entries if "layers" in name} == {"weight"}
    exact, rounded = logits(source), logits(tmp_path / "q")
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("unit", ["dense", "layer-00001", "head"])
def test_an_interrupted_run_ends_in_the_same_bytes(
    build: Build, text: Path, tmp_path: Path, unit: str, same_bytes_after: Callable[..., None]
) -> None:
    from dfrot.stage_folder import Stage

    source = build(tmp_path / "source", tie_word_embeddings=True)
    cal = calibrated(source, text, tmp_path / "cal")
    mark = Stage.mark

    def stop(self: Stage, name: str, value: Any = None) -> None:
        if name == unit:
            raise KeyboardInterrupt
        mark(self, name, value)

    same_bytes_after(lambda out: quantize(source, cal, out, settings("8", "4-g16")), Stage, "mark", stop)
