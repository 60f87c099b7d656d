"""What a folder leaves open or says twice: dfq computes what transformers computes, or refuses in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import ARCHS, describe, open_described
from dfrot.arch.spec import Scalars
from dfrot.errors import DfqError, GateError, InputError
from dfrot.runtime.load import check_folder, load_model
from dfrot.runtime.transformers_model import TransformersModel, compare_with_transformers
from dfrot.runtime.transformers_reading import check_reading

TIED = ["llama", "qwen2", "phi3", "gemma2", "mixtral"]
CLOSE = 2e-5  # relative: the same arithmetic in another order
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"

Source = Callable[..., Path]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, kit: SimpleNamespace) -> Source:
    """source(model_type, **config) -> a random checkpoint that transformers wrote."""
    made: dict[str, Path] = {}

    def build(model_type: str, **changes: Any) -> Path:
        key = repr((model_type, changes))
        if key not in made:
            made[key] = kit.build(tmp_path_factory.mktemp("source") / model_type, model_type, **changes)
        return made[key]

    return build


def notes(folder: Path) -> str:
    return "; ".join(open_described(folder)[0].resolved)


def refused(folder: Path, *words: str) -> None:
    for read in (open_described, load_model):
        with pytest.raises(DfqError) as caught:
            read(folder)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("model_type", ARCHS)
def test_an_ordinary_folder_is_read_as_transformers_reads_it(model_type: str, source: Source, readings: Any) -> None:
    folder = source(model_type)
    assert readings.difference(readings.dfq_logits(folder), readings.transformers_logits(folder)) < CLOSE
    assert not notes(folder)
    check_reading(*open_described(folder))


@pytest.mark.parametrize("model_type", TIED)
def test_a_head_that_differs_from_the_embedding_it_is_tied_to(
    model_type: str, source: Source, readings: Any, tmp_path: Path
) -> None:
    def another(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = torch.randn_like(tensors[EMBED])

    folder = readings.changed(source(model_type, tie_word_embeddings=True), tmp_path / "m", another)
    assert readings.difference(readings.dfq_logits(folder), readings.transformers_logits(folder)) < CLOSE
    checkpoint, arch = open_described(folder)
    assert not arch.tied
    assert not checkpoint.config["tie_word_embeddings"]
    assert checkpoint.stored_config["tie_word_embeddings"]
    assert "untied" in checkpoint.resolved[0]
    check_reading(checkpoint, arch)
    compare_with_transformers(checkpoint, arch, readings.TOKENS)


@pytest.mark.parametrize("model_type", TIED)
def test_a_head_that_repeats_the_embedding_is_not_read(
    model_type: str, source: Source, readings: Any, tmp_path: Path
) -> None:
    def repeat(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = tensors[EMBED].clone()

    folder = readings.changed(source(model_type, tie_word_embeddings=True), tmp_path / "m", repeat)
    checkpoint, arch = open_described(folder)
    assert arch.tied
    assert HEAD not in checkpoint
    assert f"{HEAD} repeats {EMBED}" in checkpoint.resolved[0]
    check_reading(checkpoint, arch)
    compare_with_transformers(checkpoint, arch, readings.TOKENS)
    assert readings.difference(readings.dfq_logits(folder), readings.transformers_logits(folder)) < CLOSE


def test_a_head_without_the_embedding_it_is_tied_to_is_both(source: Source, readings: Any, tmp_path: Path) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = tensors.pop(EMBED)

    folder = readings.changed(source("llama", tie_word_embeddings=True), tmp_path / "m", swap)
    assert readings.difference(readings.dfq_logits(folder), readings.transformers_logits(folder)) < CLOSE
    assert f"{EMBED} is missing" in notes(folder)


BIASES = [
    ("llama", "model.layers.0.mlp.down_proj", 64, "set mlp_bias to true"),
    ("llama", "model.layers.1.self_attn.k_proj", 32, "set attention_bias to true"),
    ("mistral", "model.layers.0.self_attn.q_proj", 128, "remove the tensor"),
    ("qwen2", "model.layers.0.self_attn.o_proj", 64, "remove the tensor"),
    ("phi3", "model.layers.0.self_attn.qkv_proj", 128, "remove the tensor"),
    ("mixtral", "model.layers.0.self_attn.v_proj", 32, "remove the tensor"),
    ("qwen3", "lm_head", 256, "remove the tensor"),
]


@pytest.mark.parametrize(("model_type", "linear", "rows", "remedy"), BIASES)
def test_biases_that_the_model_class_lacks(
    model_type: str, linear: str, rows: int, remedy: str, source: Source, readings: Any, tmp_path: Path
) -> None:
    plain = source(model_type, attention_bias=False) if model_type == "llama" else source(model_type)
    zero = readings.changed(
        plain, tmp_path / "zero", lambda tensors: tensors.update({f"{linear}.bias": torch.zeros(rows)})
    )
    assert f"1 biases that {model_type} does not have are zero" in notes(zero)
    assert f"{linear}.bias" not in open_described(zero)[0]
    assert readings.difference(readings.dfq_logits(zero), readings.transformers_logits(zero)) < CLOSE
    other = readings.changed(
        plain, tmp_path / "other", lambda tensors: tensors.update({f"{linear}.bias": torch.ones(rows)})
    )
    refused(other, f"{linear}.bias", remedy)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_biases_that_the_model_class_has_are_needed(
    model_type: str, source: Source, readings: Any, tmp_path: Path
) -> None:
    name = "model.layers.1.self_attn.q_proj.bias"
    refused(readings.changed(source(model_type), tmp_path / "m", lambda tensors: tensors.pop(name)), name, "missing")


@pytest.mark.parametrize("model_type", ARCHS)
def test_described_biases_are_those_of_the_model_class(model_type: str, kit: SimpleNamespace) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for switches in ({}, {"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}):
        config = {**kit.configs[model_type], "attention_bias": False, **switches}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
        has = {name: tuple(x.shape) for name, x in model.named_parameters() if name.endswith(".bias")}
        assert describe({"model_type": model_type, **config}).biases() == has


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "base_model.model.", "module.", "language_model.", "_orig_mod.module."]
)
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_prefix_of_all_names_is_stripped(
    model_type: str, prefix: str, source: Source, readings: Any, tmp_path: Path
) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    plain = source(model_type)
    folder = readings.changed(plain, tmp_path / "m", rename)
    assert notes(folder) == f"all tensors are named {prefix}...: read without it"
    assert torch.equal(readings.dfq_logits(folder), readings.dfq_logits(plain))
    with torch.no_grad():
        logits = load_model(folder, torch.float32)(readings.TOKENS).logits
        assert torch.equal(logits, load_model(plain, torch.float32)(readings.TOKENS).logits)


def test_a_prefix_of_some_names_is_refused(source: Source, readings: Any, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors[f"module.{EMBED}"] = tensors.pop(EMBED)

    refused(readings.changed(source("llama"), tmp_path / "m", rename), EMBED, "missing")


def test_names_of_a_model_saved_without_its_head(source: Source, readings: Any, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = readings.changed(source("llama", tie_word_embeddings=True), tmp_path / "m", rename)
    assert notes(folder) == "tensors are named without model.: read with it"
    assert readings.difference(readings.dfq_logits(folder), readings.transformers_logits(folder)) < CLOSE


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_float64_is_read_as_float32(model_type: str, source: Source, readings: Any, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    folder = readings.changed(source(model_type), tmp_path / "m", widen, lambda config: config.update(dtype="float64"))
    checkpoint, _ = check_folder(folder)
    assert "tensors are float64: read as float32" in checkpoint.resolved[0]
    assert checkpoint.config["dtype"] == "float32"
    assert {checkpoint.read(name).dtype for name in checkpoint.entries} == {torch.float32}
    assert torch.equal(readings.dfq_logits(folder), readings.dfq_logits(source(model_type)))
    assert load_model(folder).dtype == torch.float32


def test_dtype_auto_is_that_of_the_embedding(source: Source, readings: Any, tmp_path: Path) -> None:
    folder = readings.changed(
        source("llama", dtype=torch.bfloat16), tmp_path / "m", config=lambda config: config.update(dtype="auto")
    )
    assert open_described(folder)[0].config["dtype"] == "bfloat16"
    assert notes(folder) == f"config.json: dtype is auto: bfloat16, that of {EMBED}"
    assert load_model(folder).dtype == torch.bfloat16


def test_eight_bit_floats_are_named(source: Source, readings: Any, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    with pytest.raises(InputError, match=f"{name}: holds FP8"):
        open_described(readings.changed(source("llama"), tmp_path / "m", narrow))


@pytest.mark.parametrize("model_type", ARCHS)
def test_block_by_block_with_transformers(model_type: str, source: Source, readings: Any) -> None:
    """transformers' own forward pass, its weights loaded block by block, is transformers' model."""
    folder = source(model_type)
    checkpoint, arch = open_described(folder)
    logits = TransformersModel(checkpoint, arch).run(readings.TOKENS, lambda *_: None)
    assert readings.difference(logits, readings.transformers_logits(folder)) < CLOSE
    assert compare_with_transformers(checkpoint, arch, readings.TOKENS)["largest_error"] < CLOSE


def test_a_wrong_description_cannot_pass(source: Source, readings: Any) -> None:
    checkpoint, arch = open_described(source("llama"))
    swapped = dict(checkpoint.entries)
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    swapped[gate], swapped[up] = swapped[up], swapped[gate]
    with pytest.raises(InputError, match=f"{gate} is read from another place by transformers"):
        check_reading(checkpoint.renamed(swapped), arch)
    with pytest.raises(GateError, match=r"model\.layers\.1: dfq computes something else than transformers"):
        compare_with_transformers(checkpoint.renamed(swapped), arch, readings.TOKENS)
    other = replace(arch, config={**arch.config, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})
    with pytest.raises(InputError, match="dfq reads rope_parameters as"):
        check_reading(checkpoint, other)
    with pytest.raises(GateError, match=r"model\.layers\.0: dfq computes something else"):
        compare_with_transformers(checkpoint, other, readings.TOKENS)
    scaled = replace(arch, spec=replace(arch.spec, scalars=Scalars(embed="num_hidden_layers")))
    with pytest.raises(GateError, match=r"model\.embed_tokens: dfq computes something else"):
        compare_with_transformers(checkpoint, scaled, readings.TOKENS)


@pytest.mark.parametrize("kind", ["su", None])
def test_an_unknown_rope_is_named(kind: str | None, source: Source, readings: Any, tmp_path: Path) -> None:
    def rope(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {"rope_type": kind, "rope_theta": 1e4}

    folder = readings.changed(source("llama"), tmp_path / "changed", config=rope)
    with pytest.raises(InputError, match=rf"RoPE of type {kind!r} is unknown to transformers, which knows default, "):
        check_reading(*open_described(folder))


def test_a_checkpoint_that_computes_no_numbers_is_to_blame(source: Source, readings: Any, tmp_path: Path) -> None:
    def overflow(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"][0] = 3e38

    folder = readings.changed(source("llama"), tmp_path / "changed", tensors=overflow)
    with pytest.raises(InputError, match=r"model\.layers\.0 computes NaN or Inf on ordinary text"):
        compare_with_transformers(*open_described(folder), readings.TOKENS)


def test_an_unknown_activation_is_named(source: Source, readings: Any, tmp_path: Path) -> None:
    folder = readings.changed(source("llama"), tmp_path / "changed", config=lambda c: c.update(hidden_act="swosh"))
    with pytest.raises(InputError, match=r"it does not know hidden_act 'swosh'"):
        check_reading(*open_described(folder))
