"""Every ggml type that holds weights: values by hand where the layout is short, by the package gguf for all types."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfrot.errors import InputError, ResourceError, UnsupportedError
from dfrot.inputs.gguf.blocks import BLOCKS, DENSE, dequantize, require_readable
from dfrot.inputs.gguf.header import TYPES, read_header
from dfrot.inputs.gguf.package import gguf_package
from dfrot.inputs.gguf.tensors import StoredRows, read_rows

gguf = pytest.importorskip("gguf")
QUANTIZED = [name for name in BLOCKS if name not in DENSE]
KNOWN = {kind.name for kind in gguf.GGMLQuantizationType}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows, bytes] of random blocks whose values are finite and below 100."""
    block, nbytes = BLOCKS[kind]
    draw = np.random.default_rng(seed)
    count, kept = rows * columns // block, []
    while len(kept) < count:
        blocks = draw.integers(0, 256, (4 * count, nbytes), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]).reshape(4 * count, block)
        kept += list(blocks[np.isfinite(values).all(1) & (np.abs(values).max(1) < 100)])
    return np.stack(kept[:count]).reshape(rows, -1)


def float16(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block [n, bytes], as float32 [n, 1]."""
    return blocks[:, start : start + 2].clone().view(torch.float16).float()


def nibbles(codes: Tensor) -> Tensor:
    """Bytes [n, b] -> low nibbles, then high ones [n, 2 b]."""
    return torch.cat([codes & 15, codes >> 4], dim=1)


def six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K [n, 12] -> 8 scales and 8 minima of 6 bits [n, 8]."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (mixed & 15) | (first >> 6 << 4)], dim=1)
    minima = torch.cat([second & 63, (mixed >> 4) | (second >> 6 << 4)], dim=1)
    return scales.float(), minima.float()


def by_hand(kind: str, blocks: Tensor) -> Tensor:
    """float32 [n, elements] from the published layout of a block."""
    d = float16(blocks, 0)
    if kind == "Q4_0":
        return d * (nibbles(blocks[:, 2:]).float() - 8)
    if kind == "Q4_1":
        return d * nibbles(blocks[:, 4:]).float() + float16(blocks, 2)
    if kind == "Q8_0":
        return d * blocks[:, 2:].view(torch.int8).float()
    if kind in ("Q5_0", "Q5_1"):
        at = 2 if kind == "Q5_0" else 4
        bits = blocks[:, at : at + 4].repeat_interleave(8, dim=1) >> (torch.arange(32) % 8) & 1
        codes = (nibbles(blocks[:, at + 4 :]) | bits << 4).float()
        return d * (codes - 16) if kind == "Q5_0" else d * codes + float16(blocks, 2)
    if kind in ("Q4_K", "Q5_K"):
        scales, minima = six_bits(blocks[:, 4:16])
        packed = blocks[:, 16:144] if kind == "Q4_K" else blocks[:, 48:176]
        codes = torch.cat([nibbles(part) for part in packed.split(32, dim=1)], dim=1)
        if kind == "Q5_K":
            codes = codes | torch.cat([(blocks[:, 16:48] >> bit & 1) << 4 for bit in range(8)], dim=1)
        grouped = codes.view(-1, 8, 32).float()
        return (d[..., None] * scales[..., None] * grouped - float16(blocks, 2)[..., None] * minima[..., None]).flatten(
            1
        )
    assert kind == "Q6_K"
    low, high, scales = blocks[:, :128], blocks[:, 128:192], blocks[:, 192:208].view(torch.int8).float()
    codes = []
    for half in range(2):
        first, second = low[:, 64 * half : 64 * half + 32], low[:, 64 * half + 32 : 64 * half + 64]
        top = high[:, 32 * half : 32 * half + 32]
        codes += [first & 15 | (top & 3) << 4, second & 15 | (top >> 2 & 3) << 4]
        codes += [first >> 4 | (top >> 4 & 3) << 4, second >> 4 | (top >> 6) << 4]
    grouped = torch.cat(codes, dim=1).view(-1, 16, 16).float() - 32
    return (float16(blocks, 208)[..., None] * scales[..., None] * grouped).flatten(1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_values_by_hand(kind: str) -> None:
    blocks = torch.from_numpy(random_blocks(kind, 1, 256 * 64).reshape(-1, BLOCKS[kind][1]))
    torch.testing.assert_close(dequantize(blocks, kind), by_hand(kind, blocks), rtol=1e-6, atol=1e-5)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> dict[str, Any]:
    """A file of tensors alone; returns its tensor table by name."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {tensor.name: tensor for tensor in read_header(path).tensors}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_type_reads_as_the_package_does(kind: str, tmp_path: Path) -> None:
    if kind not in KNOWN:
        pytest.skip(f"the installed gguf has no {kind}")
    data = random_blocks(kind, 24, 512)
    tensor = write(tmp_path / "model.gguf", {"x": (data, kind)})["x"]
    assert (tensor.type, tensor.shape, tensor.nbytes) == (kind, (24, 512), data.size)
    expected = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))
    whole = read_rows(StoredRows(tensor), 0, 24, torch.float32)
    assert torch.equal(whole, expected)
    assert torch.equal(read_rows(StoredRows(tensor), 5, 19, torch.bfloat16), expected[5:19].bfloat16())
    pairs = read_rows(StoredRows(tensor, pairs=8), 0, 24, torch.float32)
    undone = expected.view(3, 4, 2, 512).transpose(1, 2).reshape(24, 512)
    assert torch.equal(pairs, undone)
    assert torch.equal(read_rows(StoredRows(tensor, pairs=8), 3, 13, torch.float32), undone[3:13])


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfrot.inputs.gguf import tensors

    tensor = write(tmp_path / "model.gguf", {"x": (random_blocks("Q4_K", 64, 256), "Q4_K")})["x"]
    whole = read_rows(StoredRows(tensor, pairs=16), 0, 64, torch.float32)
    monkeypatch.setattr(tensors, "CHUNK", 5 * 256)
    assert torch.equal(read_rows(StoredRows(tensor, pairs=16), 0, 64, torch.float32), whole)
    assert torch.equal(read_rows(StoredRows(tensor, pairs=16), 7, 50, torch.float32), whole[7:50])


def test_dense_types(tmp_path: Path) -> None:
    values = torch.randn(8, 32)
    stored = {
        "F32": values.numpy(),
        "F16": values.half().numpy(),
        "F64": values.double().numpy(),
        "BF16": values.bfloat16().view(torch.uint8).numpy(),
    }
    table = write(tmp_path / "model.gguf", {kind: (data, kind) for kind, data in stored.items()})
    for kind, dtype in DENSE.items():
        assert torch.equal(read_rows(StoredRows(table[kind]), 0, 8, torch.float32), values.to(dtype).float()), kind


def test_values_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    values = np.ones((4, 32), dtype=np.float32)
    damaged, large = values.copy(), values * 1e6
    damaged[2, 3] = np.nan
    table = write(tmp_path / "model.gguf", {"damaged": (damaged, "F32"), "large": (large, "F32")})
    with pytest.raises(InputError, match="tensor damaged: holds NaN or Inf; the file is damaged"):
        read_rows(StoredRows(table["damaged"]), 0, 4, torch.float32)
    assert read_rows(StoredRows(table["damaged"]), 0, 2, torch.float32).sum() == 64
    with pytest.raises(InputError, match=r"tensor large: holds values beyond torch\.float16"):
        read_rows(StoredRows(table["large"]), 0, 4, torch.float16)
    (tmp_path / "model.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:-600])
    with pytest.raises(InputError, match="tensor large: truncated while reading"):
        read_rows(StoredRows(table["large"]), 0, 4, torch.float32)


def test_types_that_hold_no_weights_are_refused(kit: SimpleNamespace) -> None:
    with pytest.raises(UnsupportedError, match="ggml type Q8_K cannot be read"):
        require_readable({"F32", "Q8_K"}, "model.gguf")
    with pytest.raises(UnsupportedError, match="ggml type type 99 cannot be read"):
        require_readable({"type 99"}, "model.gguf")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    require_readable(set(DENSE), "model.gguf")
    missing = r"the package gguf is not installed: pip install 'dfq\[gguf\]'$"
    with pytest.raises(ResourceError, match=r"^model\.gguf: holds Q4_K, Q6_K: " + missing):
        require_readable({"F32", "Q6_K", "Q4_K"}, "model.gguf")
    with pytest.raises(ResourceError, match="^" + missing):
        gguf_package()


def test_the_table_of_types_is_the_packages() -> None:
    for number, (name, block, nbytes) in TYPES.items():
        if name in KNOWN:
            kind = gguf.GGMLQuantizationType[name]
            assert (number, block, nbytes) == (int(kind), *gguf.GGML_QUANT_SIZES[kind]), name


def test_no_more_is_dequantized_at_once_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory beside the result is a chunk in float32; a row costs a row, or the head that it is interleaved with."""
    from dfrot.inputs.gguf import tensors

    tensor = write(tmp_path / "model.gguf", {"x": (random_blocks("Q8_0", 96, 256), "Q8_0")})["x"]
    elements: list[int] = []

    def recorded(data: Tensor, kind: str) -> Tensor:
        values = dequantize(data, kind)
        elements.append(values.numel())
        return values

    monkeypatch.setattr(tensors, "dequantize", recorded)
    monkeypatch.setattr(tensors, "CHUNK", 10 * 256)
    read_rows(StoredRows(tensor), 0, 96, torch.bfloat16)
    assert max(elements) == 10 * 256
    assert sum(elements) == 96 * 256
    elements.clear()
    read_rows(StoredRows(tensor), 17, 18, torch.bfloat16)
    assert elements == [256]
    elements.clear()
    read_rows(StoredRows(tensor, pairs=8), 17, 18, torch.bfloat16)
    assert elements == [8 * 256]
