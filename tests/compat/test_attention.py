"""Attention functions are looked up by name on every call, and get the arguments that ours reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.compat import attention as table


class Recorder:
    """An attention function that records its calls and computes like "sdpa"."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, module: Any, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        self.calls.append((module, args, options))
        return table.sdpa(module, *args, **options)


@torch.no_grad()
def test_a_registered_function_is_called_in_every_layer(build_model: Any, ids: Tensor) -> None:
    model, recorder = build_model(), Recorder()
    expected = model(ids).logits
    table.register("dfq-compat-test", recorder)
    table.set_implementation(model.config, "dfq-compat-test")
    assert table.implementation(model.config) == "dfq-compat-test"
    assert torch.equal(model(ids).logits, expected)
    assert [call[0].layer_idx for call in recorder.calls] == [0, 1]
    for module, (query, key, value, mask), options in recorder.calls:
        assert module.config is model.config, "modules hold the very configuration object of their model"
        assert module.is_causal
        assert query.shape == (2, 4, 10, 8)
        assert key.shape == value.shape == (2, 2, 10, 8)
        assert mask is None, "a first call without padding has no mask"
        assert options["scaling"] == pytest.approx(8**-0.5)
        assert module.scaling == options["scaling"]
        assert not options.get("dropout")


@torch.no_grad()
def test_capped_scores_are_an_option(build_model: Any, ids: Tensor) -> None:
    """Gemma 2 passes its cap as `softcap`, and its configuration names it `attn_logit_softcapping`."""
    model = build_model("gemma2", attn_implementation="eager")
    caps: list[float] = []

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        caps.append(options.pop("softcap"))
        return table.sdpa(module, query, key, value, mask, **options)

    table.register("dfq-compat-caps", record)
    table.set_implementation(model.config, "dfq-compat-caps")
    model(ids)
    assert caps == [model.config.attn_logit_softcapping] * 2 == [2.0, 2.0]


@torch.no_grad()
def test_wrapping_nests_and_ends(build_model: Any, ids: Tensor) -> None:
    model, order = build_model(), []

    def named(name: str) -> Any:
        def wrap(function: table.AttentionFunction) -> table.AttentionFunction:
            def wrapper(*args: Any, **options: Any) -> Any:
                order.append(name)
                return function(*args, **options)

            return wrapper

        return wrap

    before = table.registered("sdpa")
    expected = model(ids).logits
    with table.wrapped("sdpa", named("outer")):
        with table.wrapped("sdpa", named("inner")):
            assert torch.equal(model(ids).logits, expected)
            assert order == ["inner", "outer"] * 2
        order.clear()
        model(ids)
        assert order == ["outer"] * 2
    assert table.registered("sdpa") is before
    order.clear()
    model(ids)
    assert not order


def test_eager_attention_is_in_no_table(build_model: Any) -> None:
    assert table.registered("eager") is None
    with pytest.raises(KeyError), table.wrapped("eager", lambda function: function):
        pass


def test_building_a_model_may_change_the_name() -> None:
    """The name is put back after a model was built around the configuration of a loaded one."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    table.register("dfq-compat-kept", table.sdpa)
    table.set_implementation(config, "dfq-compat-kept")
    with table.kept_implementation(config):
        AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        table.set_implementation(config, "eager")
    assert table.implementation(config) == "dfq-compat-kept"


def test_the_default_is_sdpa(build_model: Any) -> None:
    model = build_model()
    assert table.default_implementation(model) == table.implementation(model.config) == "sdpa"


@torch.no_grad()
def test_options_that_cannot_be_served_have_these_names() -> None:
    """`dropout` and `position_bias` are keyword options; leaving them out means none."""
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    out, weights = table.sdpa(module, query, key, value, None, scaling=0.5, dropout=0.0)
    assert out.shape == (1, 3, 4, 8)
    assert weights is None
