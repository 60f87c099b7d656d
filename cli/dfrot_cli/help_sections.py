"""Headings in --help of commands with many options: heading -> parameters. What stands under none comes first."""

from __future__ import annotations

from dfrot_cli.grouped_help import Sections

ROTATE: Sections = {
    "How dfrot refines R1": (
        *("objective", "seqlen", "steps", "rounds", "massive_rule", "gamma", "a_bits", "a_sym", "a_clip", "align"),
    ),
    "Other rotations, and transforms beside them": ("block", "r4_block", "transform", "transform_windows"),
}
QUANTIZE: Sections = {
    "Weights": ("keep", "embed", "head", "mse_clip", "signed_scales", "group_scales", "fake"),
    "Activations and KV cache": ("a_clip", "kv_clip", "sink_tokens", "key_shift", "budget"),
    "GPTQ": ("propagate", "compensate", "damping", "act_order", "descent", "search_scales", "fit_scales", "memory"),
    "Tuning": ("tune_steps", "tune_dataset"),
}
GENERATE: Sections = {
    "Sampling": ("temperature", "top_p", "top_k", "repetition_penalty"),
    "Speculative decoding": ("draft", "ngram_length", "ngram_tokens", "chain", "tree", "keep", "force"),
}
SERVE: Sections = {
    "Limits": ("parallel", "queue", "prompt_chunk", "kv_memory", "prefix_memory", "max_tokens", "max_body", "timeout"),
    "Speculative decoding": ("draft", "ngram_length", "ngram_tokens", "chain", "tree", "force"),
}
DRAFT_TRAIN: Sections = {
    "Data": ("dataset", "samples", "held_out", "seqlen", "regenerate", "prompt", "keep", "features"),
    "The draft": (
        *("arch", "select", "reads", "cross", "trained_head", "newest", "intermediate", "block_size", "num_layers"),
        *("warm", "draft_vocab", "quantize", "quantize_head"),
    ),
    "Training": (
        *("epochs", "hours", "batch", "lr", "ttt_steps", "roots", "weight_decay", "evaluations", "weight_feature"),
        *("weight_mid", "loss_decay", "shard", "tensorboard"),
    ),
}
EXPORT: Sections = {
    "Checking exports": ("check", "engines", "new_tokens", "time_limit", "dataset", "seqlen", "windows"),
}
