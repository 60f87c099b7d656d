"""Commands on folders that leave something open: what they say, and that a refusal writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.files import read_json


def test_an_untied_head_is_said_and_recorded(dfq: Any, make: Any, rewrite: Any, tmp_path: Path) -> None:
    model = make("model", tie_word_embeddings=True)
    rewrite(model, {"lm_head.weight": torch.randn(260, 32).bfloat16()})
    ran = dfq("rotate", "--model", model, "--method", "none", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "note: config.json ties lm_head.weight to model.embed_tokens.weight" in ran.err
    assert "untied" in read_json(tmp_path / "out" / "stage.json")["resolved"][0]
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


def test_a_refusal_writes_nothing(dfq: Any, make: Any, rewrite: Any, tmp_path: Path) -> None:
    model = make("model")
    rewrite(model, {"model.layers.0.mlp.up_proj.bias": torch.ones(48).bfloat16()})
    for command in (("rotate", "--method", "hadamard"), ("quantize", "--algorithm", "rtn"), ("export", "--to", "gguf")):
        ran = dfq(*command, "--model", model, "--out", tmp_path / "out")
        assert ran.code == 2, ran.err
        assert "model.layers.0.mlp.up_proj.bias is a bias that llama does not have" in ran.err
        assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_ids_beyond_the_embedding_and_windows_beyond_the_context(dfq: Any, make: Any, text: Path) -> None:
    small = make("small", vocab_size=40)
    ran = dfq("eval", "ppl", "--model", small, "--dataset", text, "--seqlen", 64, "--windows", 2)
    assert ran.code == 2
    assert "the embedding has 40 rows" in ran.err
    model = make("model", max_position_embeddings=32)
    ran = dfq("eval", "ppl", "--model", model, "--dataset", text, "--seqlen", 64, "--windows", 2)
    assert ran.code == 0, ran.err
    assert "note: " in ran.err
    assert "windows of 64 tokens exceed its context of 32" in ran.err
