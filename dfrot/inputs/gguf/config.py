"""The config.json that a GGUF file stands for, from its metadata.

What transformers would compute differently from llama.cpp is refused: unknown keys of the architecture, mixtures,
pooling, attention scales, partial rotation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from dfrot.arch.gguf import GGUF_READABLE, MIXTRAL, GGUFNames
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.metadata import GGUFMetadata
from dfrot.inputs.gguf.rope import rope_config
from dfrot.inputs.gguf.vocabulary import CONTROL, SENTENCEPIECE_IDS, TOKENS, TYPES

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""model_type -> the class of transformers that config.json names."""
SLIDING, FULL_ATTENTION = "sliding_attention", "full_attention"
# Gemma: layers of the 27B models, whose query scale is not the head's width; layers per full-attention layer
_GEMMA = {"gemma2": (46, 2), "gemma3_text": (62, 6)}
_GEMMA2_WINDOW = 4096
_GRANITE = {
    "embedding_multiplier": ".embedding_scale",
    "residual_multiplier": ".residual_scale",
    "attention_multiplier": ".attention.scale",
    "logits_scaling": ".logit_scale",
}
_MIXTURES = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts", "olmoe": "num_experts"}
"""model_type -> the entry of config.json with the number of experts."""
_ENDS = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|end|>"}
"""Control tokens that end a text or a turn in every model that has them."""
_ALWAYS = "always"
_ATTENTION = {"attention_bias": tuple(f"self_attn.{name}_proj.bias" for name in "qkvo")}
_MLP = {"mlp_bias": tuple(f"mlp.{name}_proj.bias" for name in ("gate", "up", "down"))}
# model_type -> entry of config.json -> the biases that it stands for
_BIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": _ATTENTION | _MLP,
    "granite": _ATTENTION | _MLP,
    "mistral": {},
    "qwen2": {_ALWAYS: _ATTENTION["attention_bias"][:3]},
    "qwen3": _ATTENTION,
    "mixtral": {},
    "qwen3_moe": _ATTENTION,
    "olmoe": _ATTENTION,
    "gemma2": _ATTENTION,
    "gemma3_text": _ATTENTION,
}


def model_type(metadata: GGUFMetadata) -> str:
    """Our model type of the file's architecture. Raises UnsupportedError for one that cannot be read."""
    if metadata.arch not in GGUF_READABLE:
        raise UnsupportedError(
            f"{metadata.where}: architecture {metadata.arch[:40]!r} cannot be read; these can: "
            f"{', '.join(GGUF_READABLE)}",
            file=metadata.header.file,
        )
    if metadata.arch == "llama":
        if metadata.raw(".expert_count"):
            return "mixtral"
        return "mistral" if metadata.raw(".attention.sliding_window") else "llama"
    return GGUF_READABLE[metadata.arch][0]


def tensor_names(metadata: GGUFMetadata) -> GGUFNames:
    """llama.cpp's names of the file's tensors. Raises UnsupportedError for an architecture that cannot be read."""
    return MIXTRAL if model_type(metadata) == "mixtral" else GGUF_READABLE[metadata.arch][1]


def read_config(
    metadata: GGUFMetadata, names: Collection[str], vocab: int, dtype: torch.dtype, divisors: Tensor | None
) -> dict[str, Any]:
    """config.json of the file.

    Args:
        names: of the tensors, as Hugging Face calls them; they decide about biases and a tied head.
        vocab: rows of the embedding.
        dtype: of the dequantized tensors.
        divisors: `rope_freqs.weight`, if the file has it.

    Raises InputError for values that are missing or wrong, UnsupportedError for what cannot be described."""
    kind = model_type(metadata)
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "dtype": str(dtype).removeprefix("torch."),
        "tie_word_embeddings": "lm_head.weight" not in names,
        "vocab_size": vocab,
        **_sizes(metadata),
    }
    config |= rope_config(metadata, config["head_dim"], config["max_position_embeddings"], divisors)
    config |= _gemma(metadata, config) if kind in _GEMMA else {"hidden_act": "silu", **_window(metadata, kind)}
    if kind in _MIXTURES:
        config |= _mixture(metadata, kind)
    if kind == "granite":
        config |= {name: metadata.number(key, 1.0) for name, key in _GRANITE.items()}
        metadata.require(".rope.scaling.finetuned", (True,), "a Granite without rotary embedding")
    config |= _biases(metadata, kind, config["num_hidden_layers"], names)
    config |= _special_tokens(metadata, vocab)
    _refuse_others(metadata, config)
    return config


def head_size(metadata: GGUFMetadata) -> int:
    """Width of a head of keys. Raises InputError where the file gives none."""
    hidden, heads = metadata.integer(".embedding_length"), metadata.integer(".attention.head_count")
    if metadata.raw(".attention.key_length") is None and hidden % heads:
        raise InputError(f"{metadata.where}: {hidden} columns are not a multiple of {heads} heads")
    return metadata.integer(".attention.key_length", max(1, hidden // heads))


def _sizes(metadata: GGUFMetadata) -> dict[str, Any]:
    """Sizes, and the epsilon of the norms."""
    hidden, heads = metadata.integer(".embedding_length"), metadata.integer(".attention.head_count")
    head_dim = head_size(metadata)
    if metadata.integer(".attention.value_length", head_dim) != head_dim or head_dim % 2:
        raise UnsupportedError(f"{metadata.where}: keys of {head_dim} and values of another width, or of an odd one")
    return {
        "hidden_size": hidden,
        "intermediate_size": metadata.integer(".feed_forward_length", metadata.raw(".expert_feed_forward_length")),
        "num_hidden_layers": metadata.integer(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(".attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer(".context_length"),
        "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
    }


def _window(metadata: GGUFMetadata, kind: str) -> dict[str, Any]:
    """Sliding attention of other models than Gemma: Mistral's."""
    if kind in ("mistral", "mixtral"):
        return {"sliding_window": metadata.integer(".attention.sliding_window", 0, least=0) or None}
    metadata.require(".attention.sliding_window", (0,), "sliding attention in this architecture")
    return {"use_sliding_window": False} if kind in ("qwen2", "qwen3", "qwen3_moe") else {}


def _mixture(metadata: GGUFMetadata, kind: str) -> dict[str, Any]:
    """What a mixture of experts adds. Whether the weights of the chosen experts add up to 1 follows from the
    architecture."""
    count, used = metadata.integer(".expert_count"), metadata.integer(".expert_used_count")
    if used > count:
        raise metadata.error(metadata.full(".expert_used_count"), f"a number up to {count}")
    metadata.require(".expert_gating_func", (1,), "a router without softmax")
    metadata.require(".expert_shared_count", (0,), "experts that every token passes")
    config: dict[str, Any] = {_MIXTURES[kind]: count, "num_experts_per_tok": used}
    if kind == "qwen3_moe":
        config |= {"moe_intermediate_size": metadata.integer(".expert_feed_forward_length"), "norm_topk_prob": True}
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
        config["intermediate_size"] = metadata.integer(".feed_forward_length", config["moe_intermediate_size"])
    return config


def _gemma(metadata: GGUFMetadata, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma adds: sliding attention in some layers, soft caps, the scale of queries, the second RoPE base."""
    kind, layers = config["model_type"], config["num_hidden_layers"]
    large, period = _GEMMA[kind]
    default = _GEMMA2_WINDOW if kind == "gemma2" else 0
    window = metadata.integer(".attention.sliding_window", default, least=0)
    scale = config["hidden_size"] // config["num_attention_heads"] if layers == large else config["head_dim"]
    config = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": _layer_types(metadata, layers, period) if window else [FULL_ATTENTION] * layers,
    }
    base = metadata.number(".rope.freq_base_swa", 10000.0)
    if kind == "gemma3_text":
        config["rope_local_base_freq"] = base
    for name, key, default_cap in (
        ("final_logit_softcapping", ".final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", ".attn_logit_softcapping", 50.0),
    ):
        cap = metadata.number(key, default_cap if kind == "gemma2" else 0.0)
        config[name] = cap or None
    return config


def _layer_types(metadata: GGUFMetadata, layers: int, period: int) -> list[str]:
    """The attention of each layer: every `period`th is full, unless the file says otherwise."""
    key = ".attention.sliding_window_pattern"
    value = metadata.raw(key)
    if isinstance(value, list):
        return [SLIDING if slides else FULL_ATTENTION for slides in metadata.array(key, bool, layers) or ()]
    period = metadata.integer(key, period, least=0)
    return [FULL_ATTENTION if period and (layer + 1) % period == 0 else SLIDING for layer in range(layers)]


def _biases(metadata: GGUFMetadata, kind: str, layers: int, names: Collection[str]) -> dict[str, Any]:
    """`attention_bias` and `mlp_bias`. Raises UnsupportedError where transformers has no such set of biases."""
    config, allowed = {}, set[str]()
    for key, group in _BIASES[kind].items():
        full = {f"model.layers.{layer}.{name}" for layer in range(layers) for name in group}
        missing = sorted(full - set(names))
        if missing and (len(missing) < len(full) or key == _ALWAYS):
            raise UnsupportedError(
                f"{metadata.where}: {missing[0]} is missing: a {kind} model has all such biases or none",
                tensor=missing[0],
            )
        if not missing and key != _ALWAYS:
            config[key] = True
        allowed |= full
    if others := sorted(name for name in names if name.endswith(".bias") and name not in allowed):
        raise UnsupportedError(f"{metadata.where}: {others[0]}: a {kind} model has no such bias", tensor=others[0])
    return config


def _special_tokens(metadata: GGUFMetadata, vocab: int) -> dict[str, Any]:
    """Ids of special tokens; `eos_token_id` is a list where several end a text, as llama.cpp finds them."""
    sentencepiece = metadata.text("tokenizer.ggml.model", "none") == "llama"
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if sentencepiece and vocab > max(SENTENCEPIECE_IDS.values()):
        ids = {f"{name}_token_id": SENTENCEPIECE_IDS[name] for name in ("bos", "eos")}
    turn = []
    for name, role in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("eot", "eot")):
        key = f"tokenizer.ggml.{role}_token_id"
        if metadata.raw(key) is None:
            continue
        index = metadata.integer(key, least=0)
        if index >= vocab:
            raise metadata.error(key, f"an id below {vocab}")
        if name == "eot":
            turn.append(index)
        else:
            ids[f"{name}_token_id"] = index
    tokens, types = metadata.array(TOKENS, str) or [], metadata.array(TYPES, int) or []
    known = [index for index, (text, kind) in enumerate(zip(tokens, types)) if kind == CONTROL and text in _ENDS]
    ends = list(dict.fromkeys(index for index in (ids["eos_token_id"], *turn, *known) if index is not None))
    ids["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    return ids


def _refuse_others(metadata: GGUFMetadata, config: dict[str, Any]) -> None:
    """Refuse what changes the computation and has no entry in config.json, and every key that is unknown."""
    if config["model_type"] not in _MIXTURES:
        metadata.require(".expert_count", (0,), "a mixture of experts")
        metadata.require(".expert_used_count", (0,), "a mixture of experts")
    metadata.require(".pooling_type", (0,), "an embedding model")
    metadata.require(".attention.causal", (True,), "tokens that see what follows them")
    metadata.require(".use_parallel_residual", (False,), "attention and MLP side by side")
    metadata.require(".tensor_data_layout", ("Meta AI original pth",), "another order of rows")
    vocab = metadata.raw(".vocab_size")
    cut = config["model_type"] in _GEMMA  # its converter drops rows behind the last token
    if vocab is not None and vocab != config["vocab_size"] and not cut:
        raise InputError(
            f"{metadata.where}: {metadata.arch}.vocab_size is {str(vocab)[:20]}, the embedding has "
            f"{config['vocab_size']} rows",
            file=metadata.header.file,
        )
    metadata.refuse_unread()
