"""A draft as a GGUF file of llama.cpp: its architectures `eagle3` and `dflash`, which run beside a target's file.

Layers are named as the target's are. Of eagle3, queries and keys are interleaved (llama.cpp pairs 2i with 2i + 1 there,
in dflash i with i + d/2), and `d2t` holds the target's ids themselves, not offsets. Embedding and, for a draft without
a head of its own, the head are those of the target's file. `target_layers` are the numbers of the layers whose inputs
the draft reads: the outputs of our `aux_layers`, counted from 1, are just those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfrot.arch.gguf import PARTS
from dfrot.arch.llama import K, Q
from dfrot.draft.models.config import DraftConfig
from dfrot.export.gguf import tokenizer as gguf_tokenizer
from dfrot.export.gguf.tensors import interleave
from dfrot.inputs.gguf.package import gguf_package

D2T = "d2t"
FINGERPRINT = "dfq.target_fingerprint"
"""Metadata: of the checkpoint that the draft was trained on."""
NAMES = {
    "eagle3": {"fc": "fc", "norm": "output_norm", "lm_head": "output"},
    "dflash": {"fc": "fc", "hidden_norm": "enc.output_norm", "norm": "output_norm", "lm_head": "output"},
}
OF_A_LAYER = {"hidden_norm": "attn_norm_2"}  # beside PARTS


def write_draft(
    draft: DraftConfig, tensors: dict[str, Tensor], token_ids: Tensor | None, target: Path, config: Any, file: Path
) -> None:
    """Write `file`.

    Args:
        draft: an eagle3 or dflash draft.
        tensors: its weights by our names, with `lm_head.weight` where it has a head of its own.
        token_ids: int64 [N] of the tokens that it proposes; None for all.
        target: folder whose tokenizer the file gets.
        config: the target's config.json.

    Raises ResourceError without the package gguf, UnsupportedError for a tokenizer that llama.cpp does not have."""
    gguf = gguf_package()
    vocabulary = gguf_tokenizer.read_vocabulary(target, draft.vocab_size, config)
    writer = gguf.GGUFWriter(file, draft.arch)
    _write_sizes(writer, draft)
    gguf_tokenizer.write_vocabulary(writer, vocabulary)
    if draft.arch == "dflash":
        writer.add_mask_token_id(draft.mask_token_id)
    for name, value in _named(draft, tensors):
        if value.dim() == 1:
            writer.add_tensor(name, value.float().numpy())
        else:
            rows = value.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    if token_ids is not None:
        writer.add_tensor(D2T, token_ids.numpy().astype(np.int64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, draft: DraftConfig) -> None:
    writer.add_block_count(draft.num_layers if draft.arch == "dflash" else 1)
    writer.add_context_length(draft.max_position_embeddings)
    writer.add_embedding_length(draft.hidden_size)
    writer.add_feed_forward_length(draft.intermediate_size)
    writer.add_head_count(draft.num_attention_heads)
    writer.add_head_count_kv(draft.num_key_value_heads)
    writer.add_key_length(draft.head_dim)
    writer.add_value_length(draft.head_dim)
    writer.add_vocab_size(draft.vocab_size)
    writer.add_layer_norm_rms_eps(draft.rms_norm_eps)
    writer.add_rope_dimension_count(draft.head_dim)
    writer.add_rope_freq_base(draft.rope_theta)
    arch = draft.arch
    writer.add_string(FINGERPRINT, draft.target_fingerprint)
    writer.add_array(f"{arch}.target_layers", list(draft.aux_layers))
    writer.add_uint32(f"{arch}.target_hidden_size", draft.target_hidden_size)
    if arch == "eagle3":
        writer.add_bool(f"{arch}.norm_before_residual", False)
        writer.add_bool(f"{arch}.norm_before_fc", False)
    else:
        writer.add_uint32(f"{arch}.block_size", draft.block_size)
        writer.add_bool(f"{arch}.sample_from_anchor", False)
        writer.add_bool(f"{arch}.attention.causal", False)


def _named(draft: DraftConfig, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every weight with llama.cpp's name."""
    for name, value in tensors.items():
        module, _, kind = name.rpartition(".")
        if not module.startswith("layers."):
            yield f"{NAMES[draft.arch][module]}.{kind}", value
            continue
        _, number, part = module.split(".", 2)
        if draft.arch == "eagle3" and part in (Q, K):
            value = interleave(value, len(value) // draft.head_dim)
        yield f"blk.{number}.{({**PARTS, **OF_A_LAYER})[part]}.{kind}", value
