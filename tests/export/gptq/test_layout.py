"""The GPTQ layout, read by a reader that shares nothing with the writer and, where installed, by GPTQModel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.export.gptq.reader import dense_weights
from dfrot.export.run import export
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.files import read_json
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

SCHEMES = ("w4a16-g32", "w4a16-g128", "w4a16", "w4a16-g32-wasym", "w4a16-wasym", "w8a16-g32", "w8a16")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_reader_gets_our_weights_bit_for_bit(scheme: str, pack: Callable[[str], Path], tmp_path: Path) -> None:
    source = pack(scheme)
    evidence = export(source, "gptq", tmp_path / "out")
    assert evidence["scales"]["rounded"] == 0
    found, opened = dense_weights(tmp_path / "out"), open_source(source, TARGETS["gptq"])
    for name in opened.plans:
        assert torch.equal(found[f"{name}.weight"], opened.packed_weight(name).dequantize())


def test_zero_conventions(pack: Callable[[str], Path], tmp_path: Path) -> None:
    """Version 1 stores zero - 1 (7 in every nibble of a symmetric grid); an asymmetric zero may be 0: version 2."""
    export(pack("w4a16-g32"), "gptq", tmp_path / "v1")
    export(pack("w4a16-g32-wasym"), "gptq", tmp_path / "v2")
    one, two = Checkpoint.open(tmp_path / "v1"), Checkpoint.open(tmp_path / "v2")
    assert set(one.read("model.layers.0.mlp.up_proj.qzeros").flatten().tolist()) == {0x77777777}
    assert one.config["quantization_config"]["checkpoint_format"] == "gptq"
    assert two.config["quantization_config"]["checkpoint_format"] == "gptq_v2"
    assert one.read("model.layers.0.mlp.up_proj.scales").dtype == torch.float16


def test_transformers_parses_the_configuration(pack: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import GPTQConfig

    export(pack("w4a16"), "gptq", tmp_path / "out")
    entry = read_json(tmp_path / "out/config.json")["quantization_config"]
    assert "rotation" not in entry
    parsed = GPTQConfig.from_dict(dict(entry))
    assert (parsed.bits, parsed.group_size, parsed.sym, parsed.desc_act) == (4, -1, True, False)


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w4a16-g32-wasym"])
def test_gptqmodel_computes_the_same(
    scheme: str, pack: Callable[[str], Path], kit: Any, own: Any, ids: Any, tmp_path: Path
) -> None:
    """Through transformers' GPTQ path; runs where GPTQModel and optimum are installed."""
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    from transformers import AutoModelForCausalLM, GPTQConfig

    source = pack(scheme)
    export(source, "gptq", tmp_path / "out")
    settings = GPTQConfig(bits=4, backend="torch")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, device_map="cpu", quantization_config=settings
    )
    with torch.inference_mode():
        theirs = model(ids[None]).logits[0].float()
    assert kit.difference(own(source), theirs) < 1e-3


def test_what_its_kernels_cannot_hold_is_refused(kit: Any, dense: Path, tmp_path: Path) -> None:
    odd = kit.build(tmp_path / "odd", intermediate_size=240)
    quantize(odd, None, tmp_path / "packed", QuantizeSettings(QuantScheme.parse("w4a16"), "rtn", mse_clip=False))
    with pytest.raises(UnsupportedError, match="multiples of 32"):
        export(tmp_path / "packed", "gptq", tmp_path / "out")
    head = QuantizeSettings(QuantScheme.parse("w4a16-g32"), "rtn", mse_clip=False, keep=())
    quantize(dense, None, tmp_path / "head", head)
    with pytest.raises(UnsupportedError, match="16-bit head"):
        export(tmp_path / "head", "gptq", tmp_path / "out")
