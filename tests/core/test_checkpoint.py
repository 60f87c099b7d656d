"""Reading checkpoints: right ones bit for bit, hostile ones refused in one line that names file and tensor."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dfrot import safetensors_file
from dfrot.arch import describe, open_described
from dfrot.checkpoint import Checkpoint, read_header, read_metadata
from dfrot.errors import DfqError, InputError, UnsupportedError


def folder_with(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return path


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8]


def test_tensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{n}": (torch.randn(5, 3, generator=generator) * 9).to(dtype) for n, dtype in enumerate(DTYPES)}
    tensors |= {"flag": torch.tensor([True, False]), "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    checkpoint = Checkpoint.open(folder_with(tmp_path / "model", tensors))
    for name, tensor in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    assert torch.equal(checkpoint.read_rows("t1", 1, 3), tensors["t1"][1:3])
    assert torch.equal(checkpoint.read_rows("t3", 4, 99), tensors["t3"][4:])
    assert read_metadata(tmp_path / "model" / "model.safetensors") == {"format": "pt"}
    with pytest.raises(InputError, match="tensor nope is missing"):
        checkpoint.read("nope")


def test_shards(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, path / "two.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert torch.equal(Checkpoint.open(path).read("b"), torch.zeros(3))
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}}))
    with pytest.raises(InputError, match=r"two\.safetensors: tensor c is missing"):
        Checkpoint.open(path)
    (path / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors: shard is missing"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b", "", ".", "..", 3, None, ["x"]]
)
def test_an_index_may_not_point_outside(tmp_path: Path, shard: Any) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match=r"tensor a points to .* not a file of this folder"):
        Checkpoint.open(path)


@pytest.mark.parametrize("value", [[], {}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "x"}, 3])
def test_malformed_index(tmp_path: Path, value: Any) -> None:
    path = folder_with(tmp_path / "model", {"a": torch.ones(2)})
    (path / "model.safetensors.index.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="weight_map is missing or empty"):
        Checkpoint.open(path)


HOSTILE: list[tuple[Any, bytes, str]] = [
    (b"not json", b"", "header is not JSON"),
    (b"[" * 5000, b"", "header is not JSON"),
    (b'{"a": ' + b"1" * 5000 + b"}", b"", "header is not JSON"),  # a ValueError of its own
    ([], b"", "header is not an object"),
    ({"a": 3}, b"", "header entry is not an object"),
    ({"a": entry([2], 0, 8, "F8_E4M3")}, b"\0" * 8, "do not hold shape"),
    ({"a": entry([2], 0, 1, "F4")}, b"\0", "tensor a: holds FP4 .F4., which dfq does not read"),
    ({"a": entry([2], 0, 8, "X9")}, b"\0" * 8, "dtype 'X9' is not supported; convert it to one of F64, F32"),
    ({"a": entry([2], 0, 8, ["F32"])}, b"\0" * 8, "is not supported"),
    ({"a": entry([-2], 0, 8)}, b"\0" * 8, "is not a list of sizes"),
    ({"a": entry([2.0], 0, 8)}, b"\0" * 8, "is not a list of sizes"),
    ({"a": entry([True], 0, 4)}, b"\0" * 4, "is not a list of sizes"),
    ({"a": entry([2**60, 2**60], 0, 8)}, b"\0" * 8, "is not a list of sizes"),
    ({"a": entry([2**40, 2**40], 0, 8)}, b"\0" * 8, "do not hold shape"),
    ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, b"\0" * 8, "is not a list of sizes"),
    ({"a": entry([2], "0", 8)}, b"\0" * 8, "are not two integers"),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, b"\0" * 8, "are not two integers"),
    ({"a": entry([2], -8, 0)}, b"\0" * 8, "do not hold shape"),
    ({"a": entry([2], 8, 0)}, b"\0" * 8, "do not hold shape"),
    ({"a": entry([3], 0, 8)}, b"\0" * 8, "do not hold shape"),
    ({"a": entry([2], 0, 8)}, b"\0" * 7, "truncated file"),
    ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, "tensor b: data overlaps or leaves a hole"),
    ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, b"\0" * 16, "overlaps or leaves a hole"),
    ({"a": entry([2], 0, 8)}, b"\0" * 9, "1 stray bytes"),
]


@pytest.mark.parametrize(("header", "data", "message"), HOSTILE)
def test_hostile_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    file = raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(DfqError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("length", [0, 10**6, 2**40, 2**63])
def test_header_lengths_that_lie(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match=r"header of .* bytes does not fit"):
        read_header(raw(tmp_path / "bad.safetensors", {"a": entry([1], 0, 4)}, b"\0" * 4, length))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_files_shorter_than_a_length(tmp_path: Path, size: int) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\1" * size)
    with pytest.raises(InputError, match="truncated"):
        read_header(tmp_path / "bad.safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Flip bytes, cut or extend: reading either works with finite weights or raises a DfqError. Nothing else."""
    path = tmp_path_factory.getbasetemp() / "fuzz"
    folder_with(path, {"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)})
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    cut = data.draw(st.integers(-3, 3))
    file.write_bytes(bytes(content[:cut]) if cut < 0 else bytes(content) + b"\0" * cut)
    tensors = []
    with contextlib.suppress(DfqError):
        checkpoint = Checkpoint.open(path)
        tensors = [checkpoint.read(name) for name in checkpoint.entries]
    assert all(bool(torch.isfinite(tensor.double()).all()) for tensor in tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nan_and_inf_are_refused_where_they_are(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    weight = torch.ones(4, 4)
    weight[2, 1] = bad
    checkpoint = Checkpoint.open(folder_with(tmp_path / "model", {"w": weight.to(dtype)}))
    with pytest.raises(InputError, match=r"model\.safetensors: tensor w: holds NaN or Inf"):
        checkpoint.read("w")
    assert bool((checkpoint.read_rows("w", 0, 2) == 1).all())


def test_folders_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    for text in ("{", "\ud800", "1" * 5000):
        (tmp_path / "config.json").write_text(text, errors="surrogatepass")
        with pytest.raises(InputError, match="not readable as JSON"):
            Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedError, match="pickled weights"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_a_large_tensor_is_read_by_several_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = torch.randn(1001, 3)
    monkeypatch.setattr(safetensors_file, "STRETCH", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    checkpoint = Checkpoint.open(folder_with(tmp_path / "model", {"a": torch.ones(5), "w": stored}))
    assert torch.equal(checkpoint.read("w"), stored)
    assert torch.equal(checkpoint.read_rows("w", 17, 900), stored[17:900])


@pytest.mark.parametrize("stretch", [safetensors_file.STRETCH, 32])
def test_a_file_cut_after_opening(stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "STRETCH", stretch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    checkpoint = Checkpoint.open(folder_with(tmp_path / "model", {"w": torch.ones(64)}))
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-16])
    with pytest.raises(InputError, match="tensor w: truncated while reading"):
        checkpoint.read("w")


def test_digest_tells_checkpoints_apart(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "a", {"w": torch.ones(64)})
    same = folder_with(tmp_path / "b", {"w": torch.ones(64)})
    other = folder_with(tmp_path / "c", {"w": torch.ones(64) * 2})
    config = folder_with(tmp_path / "d", {"w": torch.ones(64)}, {"model_type": "mistral"})
    digests = [Checkpoint.open(path).digest() for path in (first, same, other, config)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# Against the description of the architecture

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}


def described(tmp_path: Path, config: dict[str, Any] | None = None, **changes: torch.Tensor | None) -> Path:
    config = config or CONFIG
    tensors: dict[str, torch.Tensor | None] = {k: torch.ones(v) for k, v in describe(CONFIG).tensors().items()}
    tensors.update(changes)
    return folder_with(tmp_path / "model", {k: v for k, v in tensors.items() if v is not None}, config)


def test_a_checkpoint_that_fits_its_description(tmp_path: Path) -> None:
    _, arch = open_described(described(tmp_path))
    assert (arch.hidden, arch.head_dim, arch.n_kv_heads, arch.tied) == (8, 4, 2, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.mlp.up_proj.weight": None}, "tensor model.layers.0.mlp.up_proj.weight is missing"),
        ({"model.norm.weight": torch.ones(9)}, r"tensor model.norm.weight: shape \[9\], config.json needs \[8\]"),
        ({"model.norm.weight": torch.ones(8, dtype=torch.int32)}, "dtype torch.int32 is not a weight's"),
        ({"model.layers.1.mlp.up_proj.weight": torch.ones(12, 8)}, "is not part of a llama model"),
        ({"model.layers.0.mlp.up_proj.bias": torch.ones(12)}, "is a bias that llama does not have"),
        ({"lm_head.bias": torch.ones(10)}, "is a bias that llama does not have"),
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, ""),
        ({"model.layers.0.mlp.up_proj.bias": torch.zeros(12)}, ""),
    ],
)
def test_tensors_against_the_description(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = described(tmp_path, **change)
    if not message:
        open_described(path)
        return
    with pytest.raises(InputError, match=message):
        open_described(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama' is unknown .*nearest: llama"),
        ({"model_type": None}, "None is unknown"),
        ({"hidden_size": "8"}, "hidden_size is '8'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": -8}, "hidden_size is -8"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers is"),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "not a multiple of key/value heads 4"),
        ({"sliding_window": 0}, "sliding_window is 0, a positive integer is needed, or null"),
        ({"sliding_window": -1}, "sliding_window is -1"),
    ],
)
def test_config_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DfqError, match=message):
        describe({**CONFIG, **change})
