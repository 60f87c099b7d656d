"""Small random models as GGUF files, written as llama.cpp's converter writes them, with the package gguf alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfrot import reference
from dfrot.data.tokenizer import load_tokenizer
from dfrot.inputs.gguf.model import read_model

gguf = pytest.importorskip("gguf")

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 4, "num_hidden_layers": 7}
# name -> model_type, what its configuration has beside SIZES
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim apart": ("llama", {"head_dim": 32}),
    "llama 3.1 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "mistral, window": ("mistral", {"sliding_window": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied head": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied head": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.125,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 32,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "gemma2": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    ),
    "gemma3": ("gemma3_text", {**GEMMA, "tie_word_embeddings": True}),
    "gemma3, linear rope": (
        "gemma3_text",
        {
            **GEMMA,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}
ARCHS = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
PLAIN_PARTS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_PARTS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def random_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 model of transformers with random weights, biases and norms."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, extra = MODELS[name]
    config = AutoConfig.for_model(model_type, **{**SIZES, **extra, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim >= 2:
                value.normal_(std=1.5 * value.shape[-1] ** -0.5)
            else:
                value.copy_(
                    0.3 * torch.randn(value.shape) + (1.0 if "norm" in key and "gemma" not in model_type else 0)
                )
    return model


def gguf_name(name: str, model_type: str) -> str:
    """Hugging Face's name of a tensor -> llama.cpp's."""
    module, _, kind = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{kind}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
    assert match, name
    parts = {**PARTS, **(GEMMA_PARTS if "gemma" in model_type else PLAIN_PARTS)}
    return f"blk.{match[1]}.{parts[match[2]]}.{kind}"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of Llama: halves of a head become neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """The tensors of a model, float32, under llama.cpp's names and in its order of rows."""
    config, tensors = model.config, {}
    for name, value in model.state_dict().items():
        array = value.numpy().copy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name:
            block = f"blk.{name.split('.')[2]}"
            if name.endswith("gate_up_proj"):
                tensors[f"{block}.ffn_gate_exps.weight"], tensors[f"{block}.ffn_up_exps.weight"] = np.split(array, 2, 1)
            else:
                tensors[f"{block}.ffn_down_exps.weight"] = array
            continue
        if config.model_type in ("llama", "mistral", "mixtral", "granite"):
            if ".q_proj." in name:
                array = permuted(array, config.num_attention_heads)
            if ".k_proj." in name:
                array = permuted(array, config.num_key_value_heads)
        if "gemma" in config.model_type and "norm" in name:
            array = array + np.float32(1.0)
        tensors[gguf_name(name, config.model_type)] = array
    return tensors


def write_sizes(writer: Any, config: Any) -> None:
    """The metadata of the architecture."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim)
    if head_dim * config.num_attention_heads != config.hidden_size or "gemma" in config.model_type:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type in ("mistral", "gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def write_rope(writer: Any, config: Any) -> np.ndarray | None:
    """The metadata of the rotary embedding; `rope_freqs.weight` where the model has it."""
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])
        parameters = parameters["full_attention"]
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters["rope_type"]
    if kind in ("yarn", "linear"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if kind != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain, _ = ROPE_INIT_FUNCTIONS["linear"](type(config)(**{**config.to_dict(), "rope_parameters": UNSCALED}), "cpu")
    return (plain / scaled).numpy()


UNSCALED = {**LLAMA3, "rope_type": "linear", "factor": 1.0}


def write_tokenizer(writer: Any, rows: int) -> None:
    """The reference model's tokenizer, byte-level."""
    value = json.loads((reference.path() / "tokenizer.json").read_text())
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [5] * rows
    for text, index in value["model"]["vocab"].items():
        tokens[index], types[index] = text, 1
    for added in value["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["special"] else 4
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = value["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template((reference.path() / "chat_template.jinja").read_text())


def write_gguf(
    path: Path,
    model: Any,
    types: Callable[[str], str] | str = "F32",
    change: Callable[[Any], None] | None = None,
    replaced: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a model. types: ggml type of the matrices (by name); change: adds metadata; replaced: tensors (None: left
    out)."""
    writer = gguf.GGUFWriter(path, ARCHS.get(model.config.model_type, model.config.model_type))
    write_sizes(writer, model.config)
    factors = write_rope(writer, model.config)
    if model.config.vocab_size >= 4096:
        write_tokenizer(writer, model.config.vocab_size)
    if change is not None:
        change(writer)
    tensors: dict[str, Any] = {**gguf_tensors(model), **(replaced or {})}
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    for name, array in tensors.items():
        if array is None:
            continue
        kind = types if isinstance(types, str) else types(name)
        if array.ndim < 2 or kind == "F32":
            writer.add_tensor(name, array.astype(np.float32))
        else:
            ggml_type = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(array, ggml_type), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any, count: int = 24, seed: int = 1) -> Tensor:
    """Logits float32 [count, vocab] of random tokens."""
    ids = torch.randint(2, 4000, (1, count), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`name`: every model of the table."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", MODELS)


@pytest.fixture
def kit() -> SimpleNamespace:
    """Everything above, for the tests of this folder."""
    return SimpleNamespace(
        MODELS=MODELS, random_model=random_model, write_gguf=write_gguf, logits=logits, gguf_tensors=gguf_tensors
    )


@pytest.fixture
def rebuilt() -> Callable[[Path, Path], Any]:
    """rebuilt(file, folder): the tokenizer of a file as transformers loads it from the new folder."""

    def build(file: Path, folder: Path) -> Any:
        model = read_model(file)
        folder.mkdir()
        for name, content in model.tokenizer.items():
            (folder / name).write_text(content)
        (folder / "config.json").write_text(json.dumps(model.config))
        return load_tokenizer(folder)

    return build
