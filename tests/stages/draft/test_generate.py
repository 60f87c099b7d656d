"""Generating with a draft on a loaded model: how it is decoded, and transformers' hook."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dfrot.errors import UnsupportedError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.stages.draft.generate import custom_generate, generate

Get = Callable[..., Target]


PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


RATES = ((0.8, 0.1, 0.04, 0.02),)  # by rank, at every step


def test_how_a_text_was_decoded(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama"), kit.random_draft()
    expected = plain(target, PROMPT, StopCriteria(12), Sampling()).tokens
    out, how = generate(target, draft, PROMPT, StopCriteria(12))
    assert out.tokens == expected
    assert how.startswith("plain: the draft's record holds no acceptance rates")
    draft.rates = AcceptanceRates(((0.0,),))
    out, how = generate(target, draft, PROMPT, StopCriteria(12))
    assert out.tokens == expected
    assert how.startswith("plain: the draft is accepted too rarely")
    out, how = generate(target, draft, PROMPT, StopCriteria(12), shape=TreeShape(2, 2, 4))
    assert out.tokens == expected
    assert "tree 2,2,4" in how


def test_transformers_hook(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama-kv4"), kit.random_draft()
    function = custom_generate(target.model, draft, TreeShape(3))
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    options = {"max_new_tokens": 10, "pad_token_id": 0}
    for extra in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.4}):
        one_by_one = [target.model.generate(row[None], **options, **extra)[0] for row in ids]
        ours = target.model.generate(ids, custom_generate=function, **options, **extra)
        assert torch.equal(ours, torch.stack(one_by_one))
    draft.rates, reports = AcceptanceRates(RATES), []
    adaptive = custom_generate(target.model, draft, report=reports.append)
    greedy = [target.model.generate(row[None], do_sample=False, **options)[0] for row in ids]
    assert torch.equal(
        target.model.generate(ids, custom_generate=adaptive, do_sample=False, **options), torch.stack(greedy)
    )
    assert " measured in" in reports[0]
    assert " measured in" not in reports[1], "the first row's measurements serve all"
    sampled = target.model.generate(ids, custom_generate=function, do_sample=True, temperature=0.7, **options)
    assert sampled.shape == (2, len(PROMPT) + 10)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(UnsupportedError, match="padding"):
        target.model.generate(ids, attention_mask=mask, custom_generate=function, **options)
