"""Drafts on targets whose embedding and head are integers: verified rows have the bits of single steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.proposal_head import proposal_head
from dfrot.draft.quantize import quantize_draft
from dfrot.errors import UnsupportedError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model

TABLES = [("8", "8"), ("8-g64", "8-g32"), ("4", "4"), ("8", "4-g64-asym"), ("4-g0", "8-asym"), ("8", "4+9")]


def target(folder: Path, tables: tuple[str, str], scheme: str = "w4a4kv4") -> Target:
    return Target(load_model(random_checkpoint(folder / "packed", preset("tiny"), scheme, 1, True, tables)))


@pytest.mark.parametrize("tables", TABLES)
@torch.inference_mode()
def test_logits_of_many_rows_are_those_of_each(tables: tuple[str, str], tmp_path: Path, isa: str) -> None:
    built = target(tmp_path, tables)
    for dtype in (torch.bfloat16, torch.float32):
        features = torch.randn(1, 37, built.config.hidden_size, generator=torch.Generator().manual_seed(2)).to(dtype)
        alone = torch.cat([built.logits_rows(row[None, None]) for row in features[0]], 1)
        for count in (1, 2, 5, 16, 17, 37):
            rows = built.logits_rows(features[:, :count])
            assert rows.dtype == dtype
            assert torch.equal(rows, alone[:, :count])


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("scheme", ["w4a4kv4", "w4a4"])  # by the native decoder; by modules
def test_speculation_is_lossless(tables: tuple[str, str], scheme: str, tmp_path: Path) -> None:
    built = target(tmp_path, tables, scheme)
    size, heads = int(built.config.hidden_size), int(built.config.num_attention_heads)
    torch.manual_seed(0)
    config = DraftConfig("dream", size, size, size, heads, heads, size // heads, built.vocab_size)
    draft = build(config).requires_grad_(False)
    prompt, stop = list(range(3, 12)), StopCriteria(40)
    expected = plain(built, prompt, stop, Sampling()).tokens
    assert len(set(expected)) > 3, "a text that a wrong bit could change"
    for shape in (TreeShape(3), TreeShape(4, 4, 24)):
        assert speculative(built, draft, prompt, stop, Sampling(), shape).tokens == expected


def test_no_gradient_passes_a_quantized_head(tmp_path: Path) -> None:
    built = target(tmp_path, ("16", "8"))
    features = torch.randn(2, built.config.hidden_size, requires_grad=True)
    with pytest.raises(UnsupportedError, match="16-bit head"):
        built.head(features)


def test_a_4_bit_draft_guesses_through_the_packed_head(tmp_path: Path) -> None:
    built = target(tmp_path, ("8", "8"))
    size, heads = int(built.config.hidden_size), int(built.config.num_attention_heads)
    config = DraftConfig("dream", size, size, size, heads, heads, size // heads, built.vocab_size)
    draft = build(config).requires_grad_(False)
    quantize_draft(draft, "w4")
    assert proposal_head(built, draft) == built.logits_rows
