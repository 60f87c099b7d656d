"""A forward that is set on a module runs, inside the module's hooks, and goes along with copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.forward import has_replaced_forward, replace_forward, wrapped_forwards


def doubled(module: nn.Module, x: Tensor) -> Tensor:
    return 2 * type(module).forward(module, x)  # type: ignore[no-any-return]


def test_hooks_run_around_a_replaced_forward() -> None:
    linear, x, events = nn.Linear(3, 3), torch.ones(1, 3), []
    expected = linear(x)
    linear.register_forward_pre_hook(lambda *_: events.append("before"))
    linear.register_forward_hook(lambda *_: events.append("after"))
    assert not has_replaced_forward(linear)
    replace_forward(linear, doubled)
    assert has_replaced_forward(linear)
    assert torch.equal(linear(x), 2 * expected)
    assert events == ["before", "after"]


def test_a_copy_runs_the_forward_with_itself() -> None:
    linear, x = nn.Linear(3, 3), torch.ones(1, 3)
    replace_forward(linear, doubled)
    copied = copy.deepcopy(linear)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.fill_(1.0)
    assert torch.equal(copied(x), torch.full((1, 3), 2.0))


def test_wrapping_ends_even_after_an_error() -> None:
    plain, replaced, x = nn.Linear(3, 3), nn.Linear(3, 3), torch.ones(1, 3)
    replace_forward(replaced, doubled)
    expected = plain(x), replaced(x)
    try:
        with wrapped_forwards([plain, replaced], lambda forward: lambda x: forward(x) + 1):
            assert torch.equal(plain(x), expected[0] + 1)
            assert torch.equal(replaced(x), expected[1] + 1)
            raise RuntimeError
    except RuntimeError:
        pass
    assert not has_replaced_forward(plain)
    assert torch.equal(plain(x), expected[0])
    assert torch.equal(replaced(x), expected[1])


@torch.no_grad()
def test_a_language_model_calls_its_base_with_keyword_arguments(build_model: Any, ids: Tensor) -> None:
    """The native decoder serves such calls alone."""
    model, calls = build_model(), []

    def record(base: Any, *args: Any, **call: Any) -> Any:
        calls.append((args, set(call)))
        return type(base).forward(base, *args, **call)

    replace_forward(model.model, record)
    model(ids)
    model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert len(calls) == 3
    for args, names in calls:
        assert not args
        assert {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"} <= names
