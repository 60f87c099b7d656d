"""Drafts for targets whose layers differ: sliding windows in some of them, mixtures of experts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.draft.store import load_draft
from dfrot.draft.training.target_features import text_features
from dfrot.generation.target import Target
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot_cli.main import main

FEW = ("--samples", "6", "--held-out", "2", "--seqlen", "40", "--batch", "2", "--epochs", "1", "--evaluations", "1")
SIZES = {"num_hidden_layers": 3, "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SLIDING, FULL = "sliding_attention", "full_attention"
KINDS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 9, "query_pre_attn_scalar": 24},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}


def dfq(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def packed(kind: str, folder: Path, reference: Path) -> Path:
    """A random model with the shipped tokenizer, in W4A4KV4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SIZES, **HEADS, **ENDS, **KINDS[kind], tie_word_embeddings=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.125 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder / "original")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(reference / name, folder / "original" / name)
    rotate(folder / "original", folder / "rotated", RotateSettings(method="hadamard", dataset=None))
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn")
    quantize(folder / "rotated", None, folder / "packed", settings)
    return folder / "packed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_trained_and_lossless(kind: str, reference: Path, tmp_path: Path) -> None:
    target, draft = packed(kind, tmp_path, reference), tmp_path / "draft"
    dfq("draft", "extract", "--model", target, "--out", tmp_path / "features", "--regenerate", *FEW[:6])
    dfq("draft", "train", "--model", target, "--features", tmp_path / "features", "--out", draft, *FEW)
    assert load_draft(draft).config.rope_theta == (1e4 if kind == "gemma3_text" else load_theta(target))
    few = ("--count", "2", "--prompt-tokens", "14", "--max-new-tokens", "20", "--out", tmp_path / "e.json")
    shapes = ("--chain", "3", "--tree", "3,2,6", "--require-lossless")
    dfq("draft", "eval", "--model", target, "--draft", draft, *few, *shapes)
    report = json.loads((tmp_path / "e.json").read_text())
    assert {numbers["identical"] for numbers in report["shapes"].values()} == {"2/2"}


def load_theta(model: Path) -> float:
    """The base of RoPE that a folder's config.json names."""
    return float(json.loads((model / "config.json").read_text())["rope_parameters"]["rope_theta"])


@pytest.mark.parametrize("name", ["mixed", "gemma2", "gemma3", "mixtral"])
def test_features_do_not_depend_on_later_tokens(targets: Callable[..., Target], name: str) -> None:
    """No feature depends on later tokens, whatever the kinds of attention; tokens beyond a window still matter through
    the layers without one."""
    target, generator = targets(name), torch.Generator().manual_seed(0)
    ids = torch.randint(1, 96, (1, 40), generator=generator)
    before, changed = text_features(target, ids).last, ids.clone()
    changed[0, 20] = (ids[0, 20] + 1) % 96
    moved = (text_features(target, changed).last - before).abs().amax(-1)[0]
    assert float(moved[:20].max()) < 1e-4
    assert float(moved[20:].min()) > 1e-4
