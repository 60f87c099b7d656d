"""Tiny random targets of several architectures, 16-bit and quantized, and drafts that are random, always right or
always wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.draft.models.base import Draft, Head, TrainOutput
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.state import CachedDraftState
from dfrot.draft.quantize import quantize_draft
from dfrot.generation.target import Target
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.runtime.install import use_capped_attention
from dfrot.runtime.packed_states import KVSpec

AnyDraft = TypeVar("AnyDraft", bound=Draft)

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
SLIDING, FULL = "sliding_attention", "full_attention"
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, "factor": 4.0} | {
    f"{length}_factor": [n + base for n in range(8)] for length, base in (("short", 1.0), ("long", 3.0))
}
GEMMA = {**COMMON, "query_pre_attn_scalar": 24}
KINDS: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": {**COMMON, "sliding_window": 12},
    "qwen2": COMMON,
    "qwen3": COMMON,
    "longrope": {**COMMON, "model_type": "llama", "rope_parameters": LONGROPE},
    "mixed": {**COMMON, "model_type": "qwen2", "layer_types": [FULL, SLIDING, SLIDING, FULL], "sliding_window": 9}
    | {"use_sliding_window": True},
    "gemma2": {**GEMMA, "layer_types": [SLIDING, FULL] * 2, "sliding_window": 11}
    | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0},
    "gemma3": {**GEMMA, "model_type": "gemma3_text", "layer_types": [SLIDING, SLIDING, FULL, SLIDING]}
    | {"sliding_window": 7},
    "mixtral": {**COMMON, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**COMMON, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    | {"norm_topk_prob": True},
    "olmoe": {**COMMON, "num_experts": 6, "num_experts_per_tok": 2},
    "olmo2": COMMON,
    "phi3": {**COMMON, "sliding_window": 13},
    "granite": {**COMMON, "embedding_multiplier": 2.0, "residual_multiplier": 0.6, "logits_scaling": 3.0}
    | {"attention_multiplier": 0.2},
}


def model(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model whose greedy text is not a loop of one token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{"model_type": kind, **KINDS[kind]})
    built = AutoModelForCausalLM.from_config(config, dtype=dtype)
    embedding_scale = float(getattr(built.get_input_embeddings(), "scalar_embed_scale", 1.0))  # Gemma's
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() >= 2:
                std = 1 / embedding_scale if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
                parameter.normal_(0, std)
    use_capped_attention(built.base_model, describe(config.to_dict()))
    return built.requires_grad_(False).eval()


def with_kv4(built: Any, r3: bool = True) -> Any:
    """The same model on a 4-bit KV cache, as a loaded dfq checkpoint has it."""
    from dfrot.runtime import attention
    from dfrot.runtime.forward_hooks import ForwardHooks

    attention.register_attention()
    spec = hadamard_plan(COMMON["head_dim"]) if r3 else None
    if spec is not None:
        for layer in built.model.layers:
            attention.rotate_queries(layer.self_attn, spec)
    built.config._attn_implementation = attention.NAME
    hooks = ForwardHooks(KVSpec(4, False, 1.0, spec), 0, built.config.num_hidden_layers)
    hooks.attach(built.base_model)
    return built


class Scripted(Draft):
    """A draft that knows the target's text beforehand, and proposes it (`right`), or anything else."""

    def __init__(self, text: list[int], right: bool = True, vocab: int = VOCAB) -> None:
        """text: all tokens by position, prompt included."""
        size = COMMON["hidden_size"]
        config = DraftConfig("dream", size, size, size, 4, 2, 16, vocab, max_position_embeddings=512)
        super().__init__(config)
        self.text, self.right = text, right

    def train_forward(
        self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int, roots: Tensor | None = None
    ) -> TrainOutput:
        return TrainOutput([embeddings] * (steps + 1), None)

    def logits(self, output: Tensor, head: Head) -> Tensor:
        vocab = self.config.vocab_size
        rows = torch.zeros(len(output), vocab)
        for row, position in enumerate(output[:, 0].long().tolist()):
            token = self.text[position + 1] if position + 1 < len(self.text) else 0
            rows[row] = torch.randn(vocab, generator=torch.Generator().manual_seed(position)) * 0.01
            rows[row, token] = 9.0 if self.right else -9.0
        return rows

    def begin(self, capacity: int) -> CachedDraftState:
        return _PositionState(capacity)


class _PositionState(CachedDraftState):
    """Outputs [k, 1] that are the positions of their slots."""

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        new_positions = self._new_positions(len(embeddings), positions)
        self._restart(new_positions, torch.full((1, 1), float(new_positions[0, -1])))
        return self.outputs[0]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        positions, _ = self._add_nodes(parents)
        out = positions[0].float()[:, None]
        self.outputs += list(out.split(1))
        return out


def random_draft(arch: str = "dream", dtype: torch.dtype = torch.float32) -> Draft:
    """A random draft of these targets; `dream-layers` is a dream draft that reads three layers and has a head."""
    aux = () if arch == "dream" else (1, 2, 3)
    size = COMMON["hidden_size"]
    torch.manual_seed(5)
    blocks = {"num_layers": 2, "block_size": 8, "mask_token_id": VOCAB - 1} if arch == "dflash" else {}
    head, arch = arch == "dream-layers", arch.removesuffix("-layers")
    config = DraftConfig(arch, size, size, 96, 4, 2, 16, VOCAB, max_position_embeddings=256, aux_layers=aux, **blocks)
    return build(replace(config, trained_head=head)).to(dtype).requires_grad_(False)


class Targets:
    """Targets by name, each built once: `llama`, `llama-bf16`, `llama-kv4`, `mistral`, ..."""

    def __init__(self) -> None:
        self.built: dict[str, Target] = {}

    def __call__(self, name: str, aux: tuple[int, ...] = ()) -> Target:
        key = f"{name}{aux}"
        if key not in self.built:
            kind, _, variant = name.partition("-")
            loaded = model(kind, torch.bfloat16 if variant == "bf16" else torch.float32)
            self.built[key] = Target(with_kv4(loaded) if variant == "kv4" else loaded, aux)
        return self.built[key]


def disturb_vectors(draft: Draft) -> None:
    """Add noise to gains of norms, gates and the like, which begin as constants."""
    for parameter in draft.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)


def prepared(draft: AnyDraft, quantized: str, dtype: torch.dtype) -> AnyDraft:
    """The draft as it decodes: its weights rounded as `quantized` says (empty: not at all), in `dtype`."""
    draft.requires_grad_(False).eval()
    if quantized:
        quantize_draft(draft, quantized)
    return draft.to(dtype)
