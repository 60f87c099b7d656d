"""Described models and transformers' are two ways to the same bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.generation.target import Target
from dfrot.quant.config import DfqConfig
from dfrot.quant.resets import Reset
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.online import HadamardSpec, OnlineRotations
from dfrot.runtime.described.config import MAX_POSITIONS, DescribedConfig, refuses
from dfrot.runtime.described.modules import DescribedCausalLM
from dfrot.runtime.described.rope import inverse_frequencies
from dfrot.runtime.load import load_for_decoding, load_model

MODEL_TYPES = sorted(MAX_POSITIONS)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {**LLAMA3, "original_max_position_embeddings": 64},
]


def logits(model: Any, ids: Tensor, prompt: int) -> list[Tensor]:
    """Of the prompt and of every step behind it."""
    target = Target(model, drafted=False)
    cache = target.start()
    features, last = target.prefill(ids[:prompt], cache)
    return [features, last, *(target.step(int(token), cache) for token in ids[prompt:])]


def same(folder: Path, ids: Tensor, prompts: tuple[int, ...] = (1, 3, 20)) -> tuple[Any, Any]:
    """Require equal bits of both models of a folder; returns both."""
    described, other = load_for_decoding(folder), load_model(folder)
    assert isinstance(described, DescribedCausalLM)
    described.model.decode = None  # which rounds elsewhere: test_dense_decoder.py
    for parameter in other.parameters():  # in mapped files, at addresses on which the order of a sum depends
        parameter.data = parameter.data.clone()
    for prompt in prompts:
        for ours, theirs in zip(logits(described, ids, prompt), logits(other, ids, prompt), strict=True):
            assert torch.equal(ours, theirs)
    return described, other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sixteen_bit_models(kit: Any, ids: Tensor, tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    same(kit.build(tmp_path / "m", model_type, dtype=dtype, tie_word_embeddings=dtype == torch.bfloat16), ids[0])


@pytest.mark.parametrize("rope", ROPES, ids=[rope["rope_type"] for rope in ROPES])
def test_types_of_rope(kit: Any, ids: Tensor, tmp_path: Path, rope: dict[str, Any]) -> None:
    same(kit.build(tmp_path / "m", rope_parameters=rope), ids[0])


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("scheme", ["w4a4kv4", "w4a16kv8-g16", "w8a8kv16", "w3a4kv4"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_packed_models(kit: Any, ids: Tensor, tmp_path: Path, model_type: str, scheme: str, sinks: int) -> None:
    """On the native decoder and, where sinks, widths or a 16-bit cache keep it away, through the modules."""
    source = kit.build(tmp_path / "m", model_type, dtype=torch.bfloat16)
    head_dim = kit.configs[model_type].get("head_dim", 16)
    quantized_keys = not scheme.endswith("kv16")
    online = OnlineRotations(HadamardSpec(head_dim, head_dim) if quantized_keys else None, HadamardSpec(96, 96, (12,)))
    config = DfqConfig(QuantScheme.parse(scheme), online=online, sink_tokens=sinks)
    described, other = same(kit.pack(source, tmp_path / "p", config), ids[0])
    assert described.model.dfq_native.report() == other.dfq_native.report()
    if scheme == "w4a4kv4" and described.model.dfq_native.unfit is None:
        assert described.model.dfq_native.steps > 40


def test_resets_act(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "m")
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), resets=(Reset("model.layers.0", 3, 0.5, 0.25),))
    plain = kit.pack(source, tmp_path / "q", DfqConfig(QuantScheme.parse("w4a4kv4")))
    described, _ = same(kit.pack(source, tmp_path / "p", config), ids[0])
    without = logits(load_for_decoding(plain), ids[0], 20)
    assert not torch.equal(logits(described, ids[0], 20)[1], without[1])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_config_json_leaves_out_is_what_transformers_takes(model_type: str) -> None:
    from transformers import AutoConfig

    sizes = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 32}
    ours, theirs = (
        DescribedConfig.of(describe({"model_type": model_type, **sizes})),
        AutoConfig.for_model(model_type, **sizes),
    )
    for name in ("max_position_embeddings", "rms_norm_eps", "hidden_act", "sliding_window", "rope_parameters"):
        assert getattr(ours, name) == getattr(theirs, name, None), name
    assert (ours.head_dim, ours.num_key_value_heads) == (
        getattr(theirs, "head_dim", None) or 256 // 32,
        theirs.num_key_value_heads,
    )
    assert ours.rms_norm_eps == 1e-6


@pytest.mark.parametrize("rope", [*ROPES, LLAMA3], ids=lambda rope: f"{rope['rope_type']}-{len(rope)}")
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_frequencies_are_those_of_transformers(rope: dict[str, Any], key: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    stored |= {"max_position_embeddings": 128, "vocab_size": 32, "intermediate_size": 32}
    theta = {"rope_theta": rope["rope_theta"]} if key == "rope_scaling" else {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta" or not theta}
    stored |= {key: scaling, **theta}
    arch = describe(json.loads(json.dumps(stored)))
    assert refuses(arch) is None
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**stored))
    ours = inverse_frequencies(DescribedConfig.of(arch).rope_parameters, 16)
    assert torch.equal(ours, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "granite"}, "granite"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"max_position_embeddings": True}, "max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "linear"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "default"),
        ({"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"rope_type": "default"}}, "twice"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"sliding_window": 8}, "windows"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attn_implementation": "eager"}, "attn_implementation"),
        ({"is_causal": False}, "is_causal"),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, "some layers"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "linear_attention"]}, "other kinds"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "some layers"),
    ],
)
def test_configurations_that_are_left_to_transformers(changes: dict[str, Any], reason: str) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "llama", **sizes, **changes}
    assert reason in str(refuses(describe(config)))


def test_windows_of_all_layers(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
    same(kit.build(tmp_path / "m", "qwen2", **changes), ids[0])


def test_an_architecture_without_description_here_is_loaded_by_transformers(kit: Any, tmp_path: Path) -> None:
    model = load_for_decoding(kit.build(tmp_path / "m", "granite"))
    assert type(model).__name__ == "GraniteForCausalLM"


@pytest.mark.parametrize("file", [None, {}, {"eos_token_id": 7}, {"eos_token_id": [7, 9]}])
@pytest.mark.parametrize("config", [{"eos_token_id": 5}, {"eos_token_id": None}, {"eos_token_id": [5, 6]}])
def test_end_tokens(kit: Any, tmp_path: Path, file: dict[str, Any] | None, config: dict[str, Any]) -> None:
    folder = kit.build(tmp_path / "m", **config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if file is not None:
        (folder / "generation_config.json").write_text(json.dumps(file))
    ours, theirs = load_for_decoding(folder), load_model(folder)
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id


@pytest.mark.parametrize("content", ["[]", '{"eos_token_id": "2"}', '{"eos_token_id": [1, null]}'])
def test_end_tokens_that_are_none(kit: Any, tmp_path: Path, content: str) -> None:
    from dfrot.errors import InputError

    folder = kit.build(tmp_path / "m")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match="eos_token_id"):
        load_for_decoding(folder)


def test_a_damaged_weight_is_refused(kit: Any, tmp_path: Path) -> None:
    from dfrot.checkpoint import Checkpoint
    from dfrot.errors import InputError

    folder = kit.build(tmp_path / "m")
    entry = Checkpoint.open(folder).entry("model.norm.weight")
    with entry.file.open("r+b") as handle:
        handle.seek(entry.start)
        handle.write(b"\xff" * 4)
    with pytest.raises(InputError, match=r"model\.norm\.weight.*NaN"):
        load_for_decoding(folder)


def test_transformers_may_be_imported_later(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    """A described model goes on when another model of the process brings transformers in."""
    assert "transformers" in sys.modules
    config = DfqConfig(QuantScheme.parse("w4a4kv4"))
    described, _ = same(kit.pack(kit.build(tmp_path / "m"), tmp_path / "p", config), ids[0])
    before = described.model.dfq_native.steps
    logits(described, ids[0], 4)
    assert described.model.dfq_native.steps == before + 1 + len(ids[0]) - 4
