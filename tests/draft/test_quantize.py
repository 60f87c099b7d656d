"""Quantized drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.proposal_head import proposal_head, trimmed_head
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.schemes import SMALL_HEAD, head_scheme
from dfrot.draft.store import load_draft, save_draft
from dfrot.errors import InputError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.quant.modules.linear import QuantLinear
from dfrot.stages.draft.settings import DraftSettings
from dfrot_kernels import native

Get = Callable[..., Target]


PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


@pytest.mark.parametrize(("name", "head"), [("w4", ""), ("w4", "w8"), ("w8", "")])
@pytest.mark.parametrize("arch", ["dream", "dream-layers", "eagle3", "dflash"])
def test_quantized_drafts_are_stored_and_lossless(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, name: str, head: str, arch: str
) -> None:
    target = targets("llama", () if arch == "dream" else (1, 2, 3))
    draft = kit.random_draft(arch)
    parameters = draft.count()
    report = quantize_draft(draft, name, head)
    assert draft.count() == parameters
    assert 0 < report["weight_error"] < 0.02
    assert report["bytes"] < report["bytes_before"] * (0.4 if name == "w4" else 0.7)
    draft.config = replace(draft.config, quantized=name, quantized_head=head)
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    assert ("quantized_head" in (tmp_path / "draft.json").read_text()) == bool(head), "old files are as they were"
    if arch == "eagle3":
        bits = {module.plan.w_bits for module in loaded.modules() if isinstance(module, QuantLinear)}
        assert bits == {int(name[1]), int((head or name)[1])}
    expected = plain(target, PROMPT, StopCriteria(10), Sampling()).tokens
    runs = [speculative(target, d, PROMPT, StopCriteria(10), Sampling(), TreeShape(3)) for d in (draft, loaded)]
    assert runs[0].tokens == runs[1].tokens == expected
    assert runs[0].accepted == runs[1].accepted


def test_which_heads_have_8_bits() -> None:
    """Small ones, unless the user wants something else; never those of drafts that are not in 4 bits."""
    chosen = {size: head_scheme("w4", "auto", size) for size in (0, 1, SMALL_HEAD, SMALL_HEAD + 1)}
    assert chosen == {0: "", 1: "w8", SMALL_HEAD: "w8", SMALL_HEAD + 1: ""}
    assert [head_scheme("w4", wanted, size) for wanted in ("w4", "w8") for size in (0, 1)] == ["", "", "w8", "w8"]
    assert head_scheme("w8", "auto", 1) == head_scheme("", "auto", 1) == ""
    with pytest.raises(InputError, match="`quantize_head` belongs to `quantize` w4"):
        DraftSettings(quantize_head="w8")
    with pytest.raises(InputError, match="w8 beside w4 is possible"):
        DraftConfig("dream", 8, 8, 8, 1, 1, 8, 10, quantized="w8", quantized_head="w4")


@pytest.mark.skipif(not native.active(), reason="no native library: the target's head is used as it is")
@torch.inference_mode()
def test_the_copy_of_the_targets_head_has_the_bits_of_the_config(targets: Get, kit: SimpleNamespace) -> None:
    """Rows of a trimmed vocabulary, and the whole head: in 8 bits they are nearer to the target's logits."""
    target, draft = targets("llama", ()), kit.random_draft("dream")
    quantize_draft(draft, "w4")
    features, ids = torch.randn(3, target.config.hidden_size), torch.arange(1, target.vocab_size, 3)
    exact = target.logits_rows(features)
    errors = {}
    for head in ("", "w8"):
        draft.config = replace(draft.config, quantized="w4", quantized_head=head)
        whole, rows = proposal_head(target, draft)(features), trimmed_head(target, draft, ids)(features)
        assert torch.allclose(rows, whole[..., ids], atol=1e-4)
        errors[head] = float((whole - exact).norm() / exact.norm())
    assert 1e-4 < errors["w8"] < 0.02 < errors[""] < 0.2
    assert set(target.rounded_heads) == {"w4", "w8"}
