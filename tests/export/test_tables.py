"""Exports of checkpoints whose embedding and head are integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.export import engines
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.inspect import inspect
from dfrot.export.run import export
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

STORED = {"8": "Q8_0", "8-g64": "Q8_0", "4": "Q4_0", "4-g64-asym": "Q4_1", "16": "BF16"}


def packed(dense: Path, out: Path, embed: str, head: str, scheme: str = "w4a16-g32") -> Path:
    tables: dict[str, Any] = {"embed": TableScheme.parse(embed), "head": TableScheme.parse(head)}
    quantize(dense, None, out, QuantizeSettings(QuantScheme.parse(scheme), algorithm="rtn", **tables))
    return out


@pytest.mark.parametrize(("embed", "head"), [("8", "4"), ("8-g64", "8"), ("4", "4-g64-asym"), ("16", "8")])
def test_gguf_holds_the_same_numbers(dense: Path, tmp_path: Path, embed: str, head: str) -> None:
    gguf = pytest.importorskip("gguf")
    source = packed(dense, tmp_path / "q", embed, head)
    export(source, "gguf", tmp_path / "out")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / FILE_NAME).tensors}
    model = load_model(source, "float32", fake=True)
    for name, text, module in (
        ("token_embd", embed, model.model.embed_tokens),
        ("output", head, model.lm_head),
    ):
        tensor = tensors[f"{name}.weight"]
        assert tensor.tensor_type.name == STORED[text]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tolerance = 2e-3 if "asym" in text else 0  # float16 rounds the offset of an asymmetric grid
        assert np.allclose(values, module.weight.numpy(), rtol=0, atol=tolerance)
    facts = inspect(tmp_path / "out")
    assert facts["parameters"] == inspect(source)["parameters"] == inspect(dense)["parameters"]


def test_llama_cpp_computes_with_them(
    kit: SimpleNamespace, dense: Path, engine: Callable[..., engines.Logits], own: Any, ids: Tensor, tmp_path: Path
) -> None:
    source = packed(dense, tmp_path / "q", "8", "4")
    export(source, "gguf", tmp_path / "out")
    theirs = engine("gguf", tmp_path / "out")(ids)
    assert kit.difference(own(source), theirs) < 0.03  # llama.cpp rounds activations to 8 bits


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize(("embed", "head", "field"), [("8", "16", "embed"), ("16", "8", "head"), ("8", "8", "embed")])
def test_formats_without_such_tables_refuse_them(
    dense: Path, tmp_path: Path, target: str, embed: str, head: str, field: str
) -> None:
    source = packed(dense, tmp_path / "q", embed, head)
    with pytest.raises(UnsupportedError, match=f"is quantized .*{target} keeps it in 16 bits; .*`{field}=16`"):
        export(source, target, tmp_path / "out")
    assert f"`{field}=16`" in inspect(source)["exports_to"][target]


def test_a_grid_that_gguf_lacks_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"its head is quantized \(8-asym\): 8-bit asymmetric"):
        export(packed(dense, tmp_path / "q", "8", "8-asym"), "gguf", tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"its embedding is quantized \(8-g16\): groups of 16"):
        export(packed(dense, tmp_path / "g", "8-g16", "8"), "gguf", tmp_path / "out")


def test_a_head_on_the_grid_of_the_blocks_is_a_linear_like_others(
    dense: Path, engine: Callable[..., engines.Logits], own: Any, ids: Tensor, tmp_path: Path, kit: SimpleNamespace
) -> None:
    source = packed(dense, tmp_path / "q", "16", "4")
    export(source, "compressed-tensors", tmp_path / "out")
    assert kit.difference(own(source), engine("compressed-tensors", tmp_path / "out")(ids)) < 5e-3


def test_inspect_names_the_tables(dense: Path, tmp_path: Path) -> None:
    facts = inspect(packed(dense, tmp_path / "q", "8", "4-g64-asym", "w4a4kv4"))
    assert facts["embedding"] == "8-bit symmetric, one scale per output channel"
    assert facts["head"] == "4-bit asymmetric, groups of 64"
    assert facts["kept_in_16_bits"] == []
    assert 4 < facts["bits_per_quantized_weight"] < 6
