"""Replaying a draft along a text: the rounds of decoding, where the text is the target's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dfrot.export.draft.replay import replay
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target

PROMPT = torch.randint(1, 96, (14,), generator=torch.Generator().manual_seed(9)).tolist()
LENGTH, DEPTH = 40, 3


@pytest.mark.parametrize("kind", ["partly right", "eagle3", "dflash", "dream"])
def test_the_rounds_are_those_of_decoding(targets: Callable[..., Target], kit: SimpleNamespace, kind: str) -> None:
    aux = (1, 2, 3) if kind in ("eagle3", "dflash") else ()
    target, stop = targets("llama", aux), StopCriteria(LENGTH)
    text = plain(target, PROMPT, stop, Sampling()).tokens
    if kind == "partly right":
        known = [*PROMPT, *text]
        for wrong in (17, 19, 22, 23, 27, 33):
            known[wrong] = (known[wrong] + 1) % kit.vocab
        draft = kit.scripted(known)
    else:
        draft = kit.random_draft(kind)
    decoded = speculative(target, draft, PROMPT, stop, Sampling(), TreeShape(DEPTH)).accepted
    replayed = replay(target, draft, PROMPT, text, DEPTH)
    assert replayed == decoded
    if kind == "partly right":
        assert set(replayed) == {0, 1, 2, 3}


def test_a_foreign_text_is_followed(targets: Callable[..., Target], kit: SimpleNamespace) -> None:
    """Not what the target would write: the draft that knows it is right, whatever the target thinks."""
    text = torch.randint(1, 96, (17,), generator=torch.Generator().manual_seed(2)).tolist()
    assert replay(targets("llama"), kit.scripted([*PROMPT, *text]), PROMPT, text, DEPTH) == [3, 3, 3, 3]
    assert replay(targets("llama"), kit.scripted([*PROMPT, *text], right=False), PROMPT, text, DEPTH) == [0] * 16
