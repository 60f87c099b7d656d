"""The names that llama.cpp gives to the parts of each architecture: facts of its file format, as data.

The exporter and the reader know nothing else about a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.arch.llama import DOWN, GATE, GATE_UP, OUT, QKV, UP, K, Q, V


@dataclass(frozen=True)
class GGUFNames:
    """One architecture in llama.cpp."""

    arch: str
    """`general.architecture` of the file, which chooses llama.cpp's graph."""
    interleaved: tuple[str, ...] = ()
    """Linears whose rows are interleaved for llama.cpp's RoPE: Hugging Face pairs element i of a head with i + d/2, the
    `llama` and `granite` graphs pair 2i with 2i + 1. Other graphs pair like Hugging Face."""
    parts: dict[str, str] = field(default_factory=dict)
    """Our module name inside a block -> llama.cpp's inside `blk.N`."""
    norm_offset: float = 0.0
    """What llama.cpp's norm weights have more than Hugging Face's: 1 where the latter are multiplied as 1 + weight."""
    experts: dict[str, str] = field(default_factory=dict)
    """Our name of a linear of expert `{}` inside a block -> llama.cpp's, a matrix per expert in one tensor."""
    embed: str = "token_embd"
    final_norm: str = "output_norm"
    head: str = "output"


PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    Q: "attn_q",
    K: "attn_k",
    V: "attn_v",
    OUT: "attn_output",
    GATE: "ffn_gate",
    UP: "ffn_up",
    DOWN: "ffn_down",
}

FUSED = {  # llama.cpp splits both itself
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    QKV: "attn_qkv",
    OUT: "attn_output",
    GATE_UP: "ffn_up",
    DOWN: "ffn_down",
}

GGUF_ARCHS: dict[str, GGUFNames] = {
    "llama": GGUFNames("llama", interleaved=(Q, K), parts=PARTS),
    "mistral": GGUFNames("llama", interleaved=(Q, K), parts=PARTS),
    "granite": GGUFNames("granite", interleaved=(Q, K), parts=PARTS),
    "phi3": GGUFNames("phi3", parts=FUSED),
    "qwen2": GGUFNames("qwen2", parts=PARTS),
    "qwen3": GGUFNames("qwen3", parts=PARTS),
}

GEMMA_PARTS = {
    **PARTS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

EXPERT_PARTS = {name: part for name, part in PARTS.items() if not name.startswith("mlp.")}
EXPERTS = {
    "mlp.experts.{}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{}.up_proj": "ffn_up_exps",
    "mlp.experts.{}.down_proj": "ffn_down_exps",
}
MIXTRAL = GGUFNames(
    "llama",
    interleaved=(Q, K),
    parts={**EXPERT_PARTS, "block_sparse_moe.gate": "ffn_gate_inp"},
    experts={
        "block_sparse_moe.experts.{}.w1": "ffn_gate_exps",
        "block_sparse_moe.experts.{}.w3": "ffn_up_exps",
        "block_sparse_moe.experts.{}.w2": "ffn_down_exps",
    },
)
"""`llama` with experts."""

GGUF_READABLE: dict[str, tuple[str, GGUFNames]] = {
    **{name: (name, GGUF_ARCHS[name]) for name in ("llama", "qwen2", "qwen3", "granite")},
    "qwen3moe": (
        "qwen3_moe",
        GGUFNames("qwen3moe", parts={**EXPERT_PARTS, "mlp.gate": "ffn_gate_inp"}, experts=EXPERTS),
    ),
    "olmoe": ("olmoe", GGUFNames("olmoe", parts={**EXPERT_PARTS, "mlp.gate": "ffn_gate_inp"}, experts=EXPERTS)),
    "gemma2": ("gemma2", GGUFNames("gemma2", parts=GEMMA_PARTS, norm_offset=1.0)),
    "gemma3": ("gemma3_text", GGUFNames("gemma3", parts=GEMMA_PARTS, norm_offset=1.0)),
}
"""llama.cpp's architecture -> our model type and its names, for files that can be read. `llama` holds Mistral and
Mixtral too."""
