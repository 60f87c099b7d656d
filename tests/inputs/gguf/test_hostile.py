"""Files that are damaged, hostile, or of models that transformers would compute differently: one line, before work."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.inputs import open_described_model, open_model
from dfrot.inputs.gguf.header import read_header
from dfrot.inputs.gguf.model import read_model

gguf = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that stand for files are written here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


def raw(tensors: int = 0, keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    """A file from its counts and what follows them."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(name: bytes, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """One row of the tensor table; shape as the file stores it."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty|not a GGUF file|not readable"),
    "no GGUF": (b"GGML" + bytes(40), "is not a GGUF file"),
    "magic alone": (b"GGUF", "promises 4 more bytes"),
    "version 1": (raw(version=1), "version 1 is unknown"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version .* is unknown"),
    "huge number of tensors": (raw(tensors=1 << 60), "promises .* more bytes than there are"),
    "huge number of keys": (raw(keys=1 << 62), "promises .* more bytes than there are"),
    "huge string": (raw(keys=1, body=struct.pack("<Q", 1 << 63) + bytes(64)), "promises .* more bytes than there are"),
    "key that is no text": (raw(keys=1, body=text(b"\xff\xfe") + bytes(64)), "a string is not UTF-8"),
    "unknown type of value": (raw(keys=1, body=text(b"k") + struct.pack("<I", 77) + bytes(64)), "unknown type 77"),
    "array of arrays": (
        raw(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 3) + bytes(64)),
        "elements of unknown type 9",
    ),
    "huge array": (
        raw(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(64)),
        "promises .* more bytes than there are",
    ),
    "key twice": (raw(keys=2, body=2 * (text(b"k") + struct.pack("<II", 4, 1))), "key 'k' is there twice"),
    "alignment 0": (
        raw(keys=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(64)),
        "alignment 0 is not a number of bytes",
    ),
    "five dimensions": (raw(tensors=1, body=entry(b"x", (1, 1, 1, 1, 1)) + bytes(64)), "'x' has 5 dimensions"),
    "huge dimension": (raw(tensors=1, body=entry(b"x", (1 << 62,)) + bytes(64)), "is larger than any tensor"),
    "half a block": (
        raw(tensors=1, body=entry(b"x", (33,), 2) + bytes(256)),
        "33 columns are not whole blocks of Q4_0",
    ),
    "beyond the end": (raw(tensors=1, body=entry(b"x", (1 << 20,)) + bytes(64)), "'x' lies beyond the end"),
    "offset beyond the end": (
        raw(tensors=1, body=entry(b"x", offset=1 << 60) + bytes(256)),
        "'x' lies beyond the end",
    ),
    "two in one place": (raw(tensors=2, body=entry(b"x") + entry(b"y") + bytes(512)), "overlaps"),
    "not aligned": (raw(tensors=1, body=entry(b"x", offset=8) + bytes(512)), "'x' is not aligned"),
    "name twice": (raw(tensors=2, body=entry(b"x") + entry(b"x", offset=128) + bytes(512)), "name .* is there twice"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_headers(what: str, tmp_path: Path) -> None:
    content, message = DAMAGED[what]
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    for read in (read_header, open_model):
        with pytest.raises(InputError, match=message) as caught:
            read(file)
        assert "\n" not in str(caught.value)
        assert "model.gguf" in str(caught.value)


Change = Callable[[Any], None]
REFUSED: dict[str, tuple[Change, type[DfqError], str]] = {
    "another architecture": (
        lambda w: w.add_string("general.architecture", "mamba"),
        UnsupportedError,
        "architecture 'mamba' cannot be read; these can: llama",
    ),
    "no architecture": (
        lambda w: w.kv_data[0].pop("general.architecture"),
        InputError,
        "general.architecture is 'None'",
    ),
    "an unknown key": (
        lambda w: w.add_float32("llama.attention.new_trick", 2.0),
        UnsupportedError,
        "key 'llama.attention.new_trick' is unknown to dfq",
    ),
    "experts that are not there": (
        lambda w: (w.add_expert_count(2), w.add_expert_used_count(1)),
        UnsupportedError,
        "tensor blk.0.ffn_gate.weight has no place",
    ),
    "half of a head rotated": (lambda w: w.add_rope_dimension_count(8), UnsupportedError, "rotates 8 of 16 dimensions"),
    "another kind of scaling": (
        lambda w: (w.add_string("llama.rope.scaling.type", "longrope"), w.add_rope_scaling_factor(2.0)),
        UnsupportedError,
        "rope scaling 'longrope' cannot be read",
    ),
    "a base that is not positive": (lambda w: w.add_rope_freq_base(0.0), InputError, "freq_base is '0.0', a positive"),
    "values of another width": (lambda w: w.add_value_length(8), UnsupportedError, "values of another width"),
    "no layers": (lambda w: w.add_block_count(0), InputError, "block_count is '0', an integer from 1 on"),
    "billions of layers": (lambda w: w.add_block_count(1 << 31), InputError, "block_count is '2147483648'"),
    "a size that is a text": (
        lambda w: w.add_string("llama.embedding_length", "64"),
        InputError,
        "an integer from 1 on",
    ),
    "heads that do not divide": (lambda w: w.add_head_count(7), InputError, "64 columns are not a multiple of 7 heads"),
    "heads by layer": (
        lambda w: w.add_array("llama.attention.head_count_kv", [2, 1]),
        InputError,
        r"head_count_kv is '\[2, 1\]', an integer",
    ),
    "an epsilon that is no number": (
        lambda w: w.add_layer_norm_rms_eps(float("nan")),
        InputError,
        "layer_norm_rms_epsilon is 'nan', a number is needed",
    ),
    "another vocabulary": (lambda w: w.add_vocab_size(99), InputError, "vocab_size is 99, the embedding has 4096 rows"),
    "no tokenizer": (
        lambda w: w.kv_data[0].pop("tokenizer.ggml.model"),
        UnsupportedError,
        "tokenizer 'none' cannot be read",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    change, error, message = REFUSED[what]
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"), change=change)
    with pytest.raises(error, match=message) as caught:
        open_described_model(file)
    assert "\n" not in str(caught.value)


TENSORS: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "an unknown tensor": ({"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}, "blk.0.attn_sinks.weight has no place"),
    "a layer too many": ({"blk.2.attn_q.weight": np.zeros((64, 64), np.float32)}, "blk.2.attn_q.weight has no place"),
    "no embedding": ({"token_embd.weight": None}, "no embedding"),
    "one missing": ({"blk.1.ffn_up.weight": None}, "mlp.up_proj.weight is missing"),
    "one bias of many": (
        {"blk.0.attn_q.bias": np.zeros(64, np.float32)},
        "is missing: a llama model has all such biases",
    ),
    "a bias that no model has": (
        {"output.bias": np.zeros(4096, np.float32)},
        "lm_head.bias: a llama model has no such bias",
    ),
    "another shape": ({"blk.0.ffn_up.weight": np.zeros((96, 32), np.float32)}, "up_proj.weight"),
    "rows that are no heads": ({"blk.0.attn_q.weight": np.zeros((40, 64), np.float32)}, "40 rows are not whole heads"),
    "three dimensions": ({"blk.0.ffn_up.weight": np.zeros((2, 96, 64), np.float32)}, "is no matrix or vector"),
    "other frequencies": ({"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}, "Llama 3's scaling by 8"),
    "frequencies of another head": ({"rope_freqs.weight": np.ones(4, np.float32)}, "is not 8 positive numbers"),
    "frequencies that are a matrix": ({"rope_freqs.weight": np.ones((2, 4), np.float32)}, "is no vector"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_without_a_place(what: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    replaced, message = TENSORS[what]
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model("llama"), replaced=replaced)
    with pytest.raises(DfqError, match=message) as caught:
        open_described_model(file)
    assert "\n" not in str(caught.value)


def test_any_damaged_byte_is_refused_or_read(kit: SimpleNamespace, tmp_path: Path) -> None:
    """No error but dfq's, whatever stands in a header; the tensors that are read lie in the file."""
    model = kit.random_model("llama, tied head", num_hidden_layers=1, hidden_size=32, vocab_size=512)

    def few_tokens(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["t", "0", "t0", *(f"t{index}" for index in range(3, 512))])
        writer.add_token_types([1] * 512)
        writer.add_token_merges(["t 0"])

    file = kit.write_gguf(tmp_path / "model.gguf", model, change=few_tokens)
    content = file.read_bytes()
    header = min(tensor.start for tensor in read_header(file).tensors)
    draw, read, messages = random.Random(0), 0, []
    for _ in range(400):
        damaged = bytearray(content[: draw.choice([len(content), header, draw.randrange(header)])])
        for _ in range(draw.choice([0, 1, 3])):
            at = draw.randrange(min(header, len(damaged)) or 1)
            damaged[at : at + 1] = draw.choice([b"\xff", b"\x00", bytes([draw.randrange(256)])])
        file.write_bytes(bytes(damaged))
        try:
            found = read_model(file)
        except DfqError as error:
            messages.append(str(error))
        else:
            assert all(rows.tensor.start + rows.tensor.nbytes <= len(damaged) for rows in found.tensors.values())
            read += 1
    assert read > 20
    assert len(messages) > 200
    assert not any("\n" in message for message in messages)


EXPERTS: dict[str, tuple[str, dict[str, np.ndarray | None], Change | None, str]] = {
    "a mixture in another architecture": ("qwen2", {}, lambda w: w.add_expert_count(8), "expert_count is 8: a mixture"),
    "no number of chosen experts": (
        "mixtral",
        {},
        lambda w: w.kv_data[0].pop("llama.expert_used_count"),
        "expert_used_count is 'None', an integer from 1",
    ),
    "more chosen experts than there are": (
        "mixtral",
        {},
        lambda w: w.add_expert_used_count(5),
        "expert_used_count is '5', a number up to 4 is needed",
    ),
    "a matrix for all experts": (
        "mixtral",
        {"blk.0.ffn_up_exps.weight": np.zeros((96, 64), np.float32)},
        None,
        "is not a matrix per expert",
    ),
    "an expert too few": (
        "qwen3_moe",
        {"blk.0.ffn_up_exps.weight": np.zeros((3, 32, 64), np.float32)},
        None,
        "experts.3.up_proj.weight",
    ),
    "a shared expert": (
        "qwen3_moe",
        {},
        lambda w: w.add_expert_shared_count(1),
        "expert_shared_count is 1: experts that every token passes",
    ),
    "a router without softmax": (
        "olmoe",
        {},
        lambda w: w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID),
        "expert_gating_func is 2: a router without softmax",
    ),
}


@pytest.mark.parametrize("what", EXPERTS)
def test_mixtures(what: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    model, replaced, change, message = EXPERTS[what]
    file = kit.write_gguf(tmp_path / "model.gguf", kit.random_model(model), change=change, replaced=replaced)
    with pytest.raises(DfqError, match=message) as caught:
        open_described_model(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def parts(kit: SimpleNamespace, tmp_path: Path) -> list[Path]:
    """A model split over two files, as llama.cpp's tool does."""
    model = kit.random_model("llama")
    names = list(kit.gguf_tensors(model))
    files = []
    for number in range(2):
        others = {name: None for index, name in enumerate(names) if (index < 10) != (number == 0)}

        def split(writer: Any, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(names))

        file = tmp_path / f"model-{number + 1:05}-of-00002.gguf"
        files.append(kit.write_gguf(file, model, change=split, replaced=others))
    return files


def test_a_model_in_several_files(parts: list[Path], kit: SimpleNamespace) -> None:
    state = kit.random_model("llama").state_dict()
    for path in (*parts, parts[0].parent):
        checkpoint, _ = open_described_model(path)
        assert set(checkpoint.entries) == set(state)
        assert all(torch.equal(checkpoint.read(name), value) for name, value in state.items())


def test_parts_that_do_not_belong_together(parts: list[Path]) -> None:
    shutil.copyfile(parts[0], parts[1])
    with pytest.raises(InputError, match=r"model-00002-of-00002.gguf: is not part 2 of 2; fetch it again"):
        open_model(parts[0])
    parts[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002.gguf: not readable"):
        open_model(parts[0])
    alone = parts[0].rename(parts[0].with_name("alone.gguf"))
    with pytest.raises(InputError, match=r"alone.gguf: is one of 2 files, which should be called NAME-00001-of-00003"):
        open_model(alone)
