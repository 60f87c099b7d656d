"""From end to end under one version of transformers: a packed model loads, runs natively and generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.attention_hooks import observe_attention
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings


@pytest.fixture
def packed(build_model: Any, tmp_path: Path) -> Any:
    model = build_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:  # logits that are far apart, so that rounding does not decide a token
                parameter.normal_(0, 1.0 if "embed" in name else parameter.shape[1] ** -0.5)
    model.save_pretrained(tmp_path / "source")
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a8kv8"), algorithm="rtn", a_clip=1.0)
    quantize(tmp_path / "source", None, tmp_path / "packed", settings)
    return load_model(tmp_path / "packed")


@torch.no_grad()
def test_generation_repeats_the_full_forward(packed: Any, ids: Tensor) -> None:
    out = packed.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=0)
    logits = packed(out, use_cache=False).logits[0]
    assert out[0, 10:].tolist() == logits[9:-1].argmax(-1).tolist()
    report = packed.dfq_native.report()
    assert report["unfit"] is None
    assert report["steps"] == 6


@torch.no_grad()
def test_an_observer_sees_every_layer_and_changes_nothing(packed: Any, ids: Tensor) -> None:
    expected = packed(ids, use_cache=True).logits
    assert packed.dfq_native.report() == {"steps": 1, "fallbacks": {}, "unfit": None}
    layers: list[int] = []
    with observe_attention(packed, lambda layer, *call: layers.append(layer)):
        observed = packed(ids, use_cache=True).logits
    assert layers == [0, 1]
    assert torch.equal(observed.argmax(-1), expected.argmax(-1))
    assert list(packed.dfq_native.report()["fallbacks"]) == ["attention is being watched"]
