"""Models whose embedding and head are integers, loaded by transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.embedding import QuantEmbedding
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.runtime.load import load_model

KINDS = ("llama", "qwen2", "granite", "phi3", "gemma2", "gemma3_text", "mixtral")


def config(embed: str, head: str, scheme: str = "w4a4kv4") -> DfqConfig:
    tables = {"embed": TableScheme.parse(embed), "head": TableScheme.parse(head)}
    return replace(DfqConfig(QuantScheme.parse(scheme), keep=()), **tables)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids, use_cache=True).logits.float()  # type: ignore[no-any-return]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_runs_on_them(kind: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    """Granite scales behind its embedding, Gemma inside."""
    source = kit.build(tmp_path / "source", kind, dtype=torch.bfloat16, tie_word_embeddings=False)
    exact = load_model(kit.pack(source, tmp_path / "exact", replace(config("16", "16"), keep=("lm_head",))))
    model = load_model(kit.pack(source, tmp_path / "packed", config("8", "8")))
    assert isinstance(model.get_input_embeddings(), QuantEmbedding)
    assert isinstance(model.get_output_embeddings(), QuantLinear)
    with torch.no_grad():
        rows, wanted = (m.get_input_embeddings()(ids) for m in (model, exact))
    assert rows.dtype == wanted.dtype == torch.bfloat16
    assert relative(rows.float(), wanted.float()) < 0.01
    twin = load_model(tmp_path / "packed", fake=True)
    assert torch.equal(twin.get_input_embeddings()(ids), rows)
    assert relative(logits(model, ids), logits(twin, ids)) < 0.01
    text = model.generate(ids[:, :5], max_new_tokens=4, do_sample=False, eos_token_id=-1)
    assert text.shape == (2, 9)


@pytest.mark.parametrize("tables", [("8-g16", "4"), ("4", "8-g32"), ("4-g16-asym", "4-g8-asym")])
def test_saved_again_it_is_the_same_checkpoint(
    tables: tuple[str, str], kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    model = load_model(kit.pack(kit.build(tmp_path / "source"), tmp_path / "packed", config(*tables)))
    model.save_pretrained(tmp_path / "again")
    before, after = Checkpoint.open(tmp_path / "packed"), Checkpoint.open(tmp_path / "again")
    assert set(before.entries) == set(after.entries)
    for name in before.entries:
        assert torch.equal(before.read(name), after.read(name)), name
    assert DfqConfig.of(after.config) == config(*tables)
    assert torch.equal(logits(load_model(tmp_path / "again"), ids), logits(model, ids))


def test_tied_tables_are_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source", tie_word_embeddings=True)
    for tables in (("8", "16"), ("16", "8")):
        with pytest.raises(InputError, match="untie"):
            kit.pack(source, tmp_path / "packed", config(*tables))


def test_damaged_tables_are_refused_by_name(kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = kit.pack(kit.build(tmp_path / "source"), tmp_path / "packed", config("8", "8"))
    checkpoint = Checkpoint.open(folder)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.entries}
    scale = tensors["model.embed_tokens.weight_scale"]
    for damaged, message in (
        (scale[:, :0], r"model.embed_tokens.weight_scale: shape \[256, 0\]"),
        (scale.float(), "model.embed_tokens.weight_scale: dtype"),
        (None, "model.embed_tokens.weight_scale"),
    ):
        broken = {**tensors, "model.embed_tokens.weight_scale": damaged}
        broken = {name: tensor for name, tensor in broken.items() if tensor is not None}
        other = kit.write(tmp_path / message[-9:-3], checkpoint.config, broken)
        with pytest.raises(InputError, match=message):
            load_model(other)
