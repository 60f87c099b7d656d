"""GGUF: blocks that decode to our numbers, llama.cpp on every architecture, its tokenizer on any text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, UnsupportedError
from dfrot.export import engines
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.run import export

gguf = pytest.importorskip("gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama with biases": ({"attention_bias": True}, (*QKV, "self_attn.o_proj")),
    "llama, tied head": ({"tie_word_embeddings": True}, ()),
    "llama, head_dim apart": ({"head_dim": 64}, ()),
    "llama 3.1 rope": ({"rope_scaling": LLAMA3}, ()),
    "linear rope": ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ()),
    "transformers 5 rope": ({"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "rope_theta": None}, ()),
    "mistral": ({"model_type": "mistral"}, ()),
    "qwen2 with biases": ({"model_type": "qwen2"}, QKV),
    "granite, tied head": (
        {
            "model_type": "granite",
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.125,
            "logits_scaling": 8.0,
        },
        (),
    ),
    "phi3": ({"model_type": "phi3", "pad_token_id": None}, ()),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, ()),
    "qwen3, tied head": ({"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True}, ()),
}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_every_architecture(
    name: str, kit: SimpleNamespace, engine: Callable[..., engines.Logits], own: Any, ids: Tensor, tmp_path: Path
) -> None:
    """In float32 nothing is rounded but llama.cpp's float16 key-value cache."""
    changes, biased = MODELS[name]
    changes = {key: value for key, value in changes.items() if value is not None or key == "pad_token_id"}
    model = kit.build(tmp_path / "model", bias=biased, **changes)
    export(model, "gguf", tmp_path / "out", dtype="f32")
    theirs = engine("gguf", tmp_path / "out")(ids)
    assert kit.difference(own(model), theirs) < 2e-3


def test_llama_cpp_reads_text_as_we_do(dense: Path, tmp_path: Path) -> None:
    """Token ids of random text, special and added tokens, the BOS; the chat template is there."""
    llama_cpp = pytest.importorskip("llama_cpp")
    export(dense, "gguf", tmp_path / "out")
    model = llama_cpp.Llama(model_path=str(tmp_path / "out" / FILE_NAME), vocab_only=True, verbose=False)
    ours = load_tokenizer(dense)
    draw = random.Random(0)
    pieces = ["the", " the", "in", "\f", "</s>", "  ", "\n", "x1", "é", "日本", "🙂", "'s", "!?", "0", "\t"]
    for _ in range(40):
        text = "".join(draw.choice(pieces) for _ in range(12))
        assert model.tokenize(text.encode(), add_bos=True, special=True) == ours(text)["input_ids"], text
    assert model.metadata["tokenizer.chat_template"] == (dense / "chat_template.jinja").read_text()
    assert model.token_bos() == 0
    assert model.token_eos() == 1


def test_what_the_file_says(pack: Callable[[str], Path], kit: SimpleNamespace, tmp_path: Path) -> None:
    """Types and names by the public reader: linears as blocks, norms in float32, an untied head, padded vocabulary."""
    export(pack("w4a16-g32"), "gguf", tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / FILE_NAME)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.1.ffn_down.weight"] == "Q4_0"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["output.weight"] == types["token_embd.weight"] == "BF16"
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    assert np.array_equal(norm.data, Checkpoint.open(pack("w4a16-g32")).read("model.norm.weight").float().numpy())
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == kit.rows


def test_the_same_bytes_every_time(pack: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(pack("w4a16-g32"), "gguf", tmp_path / name)
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def _changed(model: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of `model` with an edited tokenizer.json."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    value = json.loads((folder / "tokenizer.json").read_text())
    change(value)
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pre_tokenizer": lambda value: value.update(pre_tokenizer={"type": "Whitespace"}),
    "prefix space": lambda value: value["pre_tokenizer"].update(add_prefix_space=True),
    "normalizer": lambda value: value.update(normalizer={"type": "Lowercase"}),
    "model": lambda value: value["model"].update(type="Unigram"),
    "id outside": lambda value: value["model"]["vocab"].update(more=10**6),
    "id not a number": lambda value: value["model"]["vocab"].update(more="x"),
    "no model": lambda value: value.pop("model"),
    "split without a pattern": lambda value: value.update(pre_tokenizer={"type": "Split", "behavior": "Isolated"}),
    "added tokens": lambda value: value.update(added_tokens=[{"id": 3}]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(name: str, dense: Path, tmp_path: Path) -> None:
    model = _changed(dense, tmp_path / "model", BROKEN[name])
    with pytest.raises((UnsupportedError, InputError), match=r"tokenizer\.json") as caught:
        export(model, "gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": "x"}},
        {"rope_scaling": 7},
        {"rope_theta": "big"},
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
    ],
    ids=str,
)
def test_a_config_without_words_in_gguf_is_refused(changes: dict[str, Any], kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", **changes)
    with pytest.raises((UnsupportedError, InputError), match=r"config\.json") as caught:
        export(model, "gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_sliding_window_bounds_the_context(kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", model_type="mistral", sliding_window=64)
    export(model, "gguf", tmp_path / "out")
    field = gguf.GGUFReader(tmp_path / "out" / FILE_NAME).fields["llama.context_length"]
    assert int(field.parts[field.data[0]][0]) == 64


def test_rope_that_was_added_to_a_newer_file_counts(kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (model / "config.json").write_text(json.dumps(config))
    export(model, "gguf", tmp_path / "out")
    field = gguf.GGUFReader(tmp_path / "out" / FILE_NAME).fields["llama.rope.scaling.factor"]
    assert float(field.parts[field.data[0]][0]) == 4.0
