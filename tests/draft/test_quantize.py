"""Quantized drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.quantize import quantize_draft
from dfrot.draft.store import load_draft, save_draft
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target

Get = Callable[..., Target]


PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


@pytest.mark.parametrize("name", ["w4", "w8"])
@pytest.mark.parametrize("arch", ["dream", "dream-layers", "eagle3", "dflash"])
def test_quantized_drafts_are_stored_and_lossless(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, name: str, arch: str
) -> None:
    target = targets("llama", () if arch == "dream" else (1, 2, 3))
    draft = kit.random_draft(arch)
    parameters = draft.count()
    report = quantize_draft(draft, name)
    assert draft.count() == parameters
    assert 0 < report["weight_error"] < 0.02
    assert report["bytes"] < report["bytes_before"] * (0.4 if name == "w4" else 0.7)
    draft.config = replace(draft.config, quantized=name)
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    expected = plain(target, PROMPT, StopCriteria(10), Sampling()).tokens
    runs = [speculative(target, d, PROMPT, StopCriteria(10), Sampling(), TreeShape(3)) for d in (draft, loaded)]
    assert runs[0].tokens == runs[1].tokens == expected
    assert runs[0].accepted == runs[1].accepted
