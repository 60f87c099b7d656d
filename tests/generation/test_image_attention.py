"""Which image tokens the draft gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.target_features import multimodal_features
from dfrot.errors import InputError
from dfrot.generation.multimodal import image_attention_probe, prefill_multimodal
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs

GREEDY, IMAGE, VOCAB = Sampling(), 120, 128


SHAPES = (TreeShape(3), TreeShape(4, 3, 10))


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3-vl"])
def test_any_share_of_image_tokens_is_lossless(vlms: SimpleNamespace, name: str, keep: float) -> None:
    target, prompt, inputs = vlms.target(name), vlms.prompt(name, 3), vlms.inputs(name, 3)
    expected = plain(target, prompt, StopCriteria(16), GREEDY, images=ImageInputs(inputs)).tokens
    for draft in (vlms.draft().requires_grad_(False), vlms.draft("eagle3").requires_grad_(False)):
        own_target = Target(target.model, draft.config.aux_layers)
        out = speculative(
            own_target, draft, prompt, StopCriteria(16), GREEDY, SHAPES[1], images=ImageInputs(inputs, keep)
        )
        assert out.tokens == expected


def eager_scores(target: Target, ids: Tensor, inputs: dict[str, Any], layer: int) -> Tensor:
    """The same scores from the attention matrix of a layer."""
    target.decoder.config._attn_implementation = "eager"  # type: ignore[union-attr]
    out = target.model(input_ids=ids[None], **inputs, output_attentions=True, use_cache=False)
    target.decoder.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    columns = (ids == IMAGE).nonzero().flatten()
    return out.attentions[layer][0].mean(0)[int(columns[-1]) + 1 :, columns].mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl"])
def test_scores_equal_eager_attention_and_ignore_the_answer(vlms: SimpleNamespace, name: str) -> None:
    target, ids = vlms.target(name), torch.tensor(vlms.prompt(name, 1))
    inputs, probe, probe_of_longer = (
        vlms.inputs(name, 1),
        image_attention_probe(target, ids),
        image_attention_probe(target, ids),
    )
    prefill_multimodal(target, ids, inputs, target.start(), probe)
    layer = 2 if name == "gemma3" else 3  # the last without a window
    assert torch.allclose(probe.scores, eager_scores(target, ids, inputs, layer), atol=1e-6)
    longer = torch.cat([ids, torch.tensor([5, IMAGE, 7, 8])])
    chooser = FeatureChooser(FeatureSelection.parse("none"), torch.ones(1, 4, dtype=torch.bool), 4)
    features = multimodal_features(target, longer, len(ids), inputs, chooser, probe_of_longer)
    assert torch.equal(probe_of_longer.scores, probe.scores), "the answer changed what is kept"
    assert torch.equal(features.embeddings[0, len(ids) :], target.embed(longer[len(ids) :])), (
        "image tokens in an answer are text"
    )


def test_kept_positions(vlms: SimpleNamespace) -> None:
    target = vlms.target("llava")
    ids = torch.tensor([3, *[IMAGE] * 4, 9, *[IMAGE] * 3, 8, 7])
    probe = image_attention_probe(target, ids)
    assert probe.rows.tolist() == [9, 10]
    probe.scores = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0, 0.5, 0.1])
    assert probe.kept_positions(0.5).tolist() == [0, 2, 3, 5, 7, 8, 9, 10]
    assert probe.kept_positions(0.01).tolist() == [0, 2, 5, 7, 9, 10]
    assert probe.kept_positions(0).tolist() == [0, 5, 9, 10]
    assert probe.kept_positions(1).tolist() == list(range(11))
    with pytest.raises(InputError, match="share"):
        probe.kept_positions(1.5)
