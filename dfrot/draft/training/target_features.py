"""What a draft is trained on of its target: features of whole sequences, as the deployed model computes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.draft.attention_entropy import row_entropy
from dfrot.draft.feature_selection import FeatureChooser
from dfrot.generation.image_attention import ImageAttentionProbe
from dfrot.generation.multimodal import prefill_multimodal
from dfrot.generation.target import Target
from dfrot.runtime.attention_hooks import observe_attention


@dataclass
class TargetFeatures:
    """Features of B sequences of S positions."""

    last: Tensor
    """[B, S, d] behind the final norm."""
    mid: Tensor | None = None
    """[B, S, d], the chosen intermediate feature."""
    layer: Tensor | None = None
    """int64 [B, 1 or S], the layer that `mid` is of."""
    aux: Tensor | None = None
    """[B, S, 3 d], outputs of the aux layers side by side."""
    embeddings: Tensor | None = None
    """With images: [B, S, d], embeddings of text and images merged."""
    kept: Tensor | None = None
    """With images: int64 [B, n], the positions that are slots of the draft."""


@torch.no_grad()
def text_features(target: Target, ids: Tensor, chooser: FeatureChooser | None = None) -> TargetFeatures:
    """Features of ids int64 [B, S], quantized activations and KV cache included."""
    with _observed(target, chooser), target.record_aux() as aux:
        out = target.decoder(input_ids=ids, use_cache=False)
    mid, layer = (chooser.feature, chooser.layer) if chooser is not None else (None, None)
    return TargetFeatures(out.last_hidden_state, mid, layer, aux.features())


@torch.no_grad()
def multimodal_features(
    target: Target,
    ids: Tensor,
    prompt: int,
    inputs: dict[str, Any],
    chooser: FeatureChooser,
    probe: ImageAttentionProbe | None = None,
) -> TargetFeatures:
    """Features [1, S, ..] of one sequence int64 [S] whose first `prompt` tokens hold images.

    The sequence runs in two passes, as in decoding: what follows the prompt is text, whatever ids it holds.

    Args:
        target: a target that takes images.
        ids: the sequence.
        prompt: length of the prompt.
        inputs: the processor's other tensors.
        chooser: of the rows behind the prompt; `mid` is zero before them.
        probe: observes the prompt's pass.
    """
    cache = target.start()
    prefill = prefill_multimodal(target, ids[:prompt], inputs, cache, probe)
    rest = ids[None, prompt:]
    with _observed(target, chooser), target.record_aux() as aux:
        positions = target.position_ids(rest, cache)
        out = target.decoder(input_ids=rest, past_key_values=cache, use_cache=True, **positions)
    aux_features, mid = aux.features(), chooser.feature
    if aux_features is not None:
        aux_features = torch.cat([prefill.features[None], aux_features], 1)
    if mid is not None:
        mid = torch.cat([mid.new_zeros(1, prompt, mid.shape[2]), mid], 1)
    embeddings = torch.cat([prefill.embeddings, target.embed(rest[0])])[None]
    last = torch.cat([prefill.last[None], out.last_hidden_state], 1)
    return TargetFeatures(last, mid, chooser.layer, aux_features, embeddings)


@contextlib.contextmanager
def _observed(target: Target, chooser: FeatureChooser | None) -> Iterator[None]:
    """Let `chooser` observe the forward pass inside."""
    handles = []
    if chooser is not None and chooser.selection.kind != "none":
        for number, layer in enumerate(target.layers):
            handles.append(layer.register_forward_hook(_offer_output(chooser, number)))
    observed: Any = contextlib.nullcontext()
    if chooser is not None and chooser.selection.kind in ("sample", "token"):
        observed = observe_attention(target.model, _measure_entropy(chooser))
    try:
        with observed:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _measure_entropy(chooser: FeatureChooser) -> Any:
    def observe(
        layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool, cap: float | None
    ) -> None:
        if chooser.wants_entropy(layer):
            chooser.measured(*row_entropy(query, key, mask, scale, causal, cap=cap))

    return observe


def _offer_output(chooser: FeatureChooser, layer: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        chooser.offer(layer, output[0] if isinstance(output, tuple) else output)

    return hook
