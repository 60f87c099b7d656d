"""Sizes that a config.json leaves out, or sets to null: those of transformers' configuration of the same type."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.arch import ARCHS, Size, describe
from dfrot.arch.defaults import with_omitted_sizes
from dfrot.errors import DfqError

# sizes that no default has, so that a default cannot be taken for them
SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 136,
    "moe_intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 96,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": 140,
    "num_local_experts": 5,
    "num_experts": 5,
}
SPECIAL = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": None}
VLM_LANGUAGES = ["qwen2_5_vl_text", "qwen3_vl_text"]


def transformers_sizes(model_type: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """What a model of transformers is built with; None where its configuration refuses the values."""
    from transformers import AutoConfig

    try:
        built = AutoConfig.for_model(model_type, **config)
    except Exception:  # a validation error of huggingface_hub, a TypeError, ...
        return None
    heads, moe = built.num_attention_heads, model_type == "qwen3_moe"
    count = {"olmoe": "num_experts", "mixtral": "num_local_experts", "qwen3_moe": "num_local_experts"}
    return {
        "hidden": built.hidden_size,
        "layers": built.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(built, "num_key_value_heads", None) or heads,
        "head_dim": getattr(built, "head_dim", None) or built.hidden_size // heads,
        "width": built.moe_intermediate_size if moe else built.intermediate_size,
        "vocab": built.vocab_size,
        "experts": getattr(built, count[model_type]) if model_type in count else 0,
    }


def described_sizes(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    arch = describe({"model_type": model_type, **config})
    return {
        "hidden": arch.hidden,
        "layers": arch.n_layers,
        "heads": arch.n_heads,
        "kv_heads": arch.n_kv_heads,
        "head_dim": arch.head_dim,
        "width": arch.intermediate,
        "vocab": arch.vocab_size,
        "experts": arch.n_experts,
    }


@pytest.mark.parametrize("missing", [*SIZES, "all"])
@pytest.mark.parametrize("model_type", ARCHS)
def test_a_size_that_is_left_out(model_type: str, missing: str) -> None:
    config = {key: value for key, value in SIZES.items() if key != missing and missing != "all"}
    if missing not in ("num_experts", "num_local_experts", "all"):  # two names of one number
        del config["num_experts" if model_type == "mixtral" else "num_local_experts"]
    expected = transformers_sizes(model_type, {**config, **SPECIAL})
    if expected is None:  # transformers finds the sizes inconsistent, whether dfq does or not
        return
    assert described_sizes(model_type, config) == expected


@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("model_type", ARCHS)
def test_a_size_that_is_null(model_type: str, key: str) -> None:
    config = {**SIZES, key: None}
    expected = transformers_sizes(model_type, {**config, **SPECIAL})
    if expected is not None:
        assert (
            described_sizes(model_type, config)[key.removeprefix("num_").replace("key_value", "kv")]
            == expected["kv_heads" if key != "head_dim" else key]
        )


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_sizes_that_have_no_meaning_as_null(key: str) -> None:
    with pytest.raises(DfqError, match=f"{key} is None"):
        describe({"model_type": "llama", **SIZES, key: None})


@pytest.mark.parametrize("chosen", [0, 6, -1, "2", True])
@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "qwen3_moe"])
def test_a_token_goes_to_some_of_the_experts(model_type: str, chosen: Any) -> None:
    with pytest.raises(DfqError, match="num_experts_per_tok is"):
        describe({"model_type": model_type, **SIZES, "num_experts_per_tok": chosen})


@pytest.mark.parametrize("model_type", VLM_LANGUAGES)
def test_language_models_of_vlms(model_type: str) -> None:
    from transformers import AutoConfig

    built = AutoConfig.for_model(model_type).to_dict()
    omitted = with_omitted_sizes({}, model_type)
    assert omitted
    assert {key: built[key] for key in omitted} == omitted
    keys = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    assert keys | {"vocab_size"} <= set(omitted)


def test_a_vlm_without_any_size() -> None:
    arch = describe({"model_type": "qwen2_5_vl"})
    assert (arch.hidden, arch.n_kv_heads, arch.sizes[Size.VOCAB]) == (8192, 8, 152_064)
