"""The target's pass over a prompt with images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.errors import InputError, UnsupportedError
from dfrot.generation.image_attention import ImageAttentionProbe
from dfrot.generation.target import Target
from dfrot.runtime.attention_hooks import observe_attention


@dataclass(frozen=True)
class MultimodalPrefill:
    """A prompt with images whose keys and values are in the cache."""

    features: Tensor
    """[n, f] for the draft."""
    last: Tensor
    """[n, d] behind the final norm."""
    logits: Tensor
    """float32 [V] of the last position."""
    embeddings: Tensor
    """[n, d], image embeddings in place."""


@torch.no_grad()
def prefill_multimodal(
    target: Target, ids: Tensor, inputs: dict[str, Any], cache: Any, probe: ImageAttentionProbe | None = None
) -> MultimodalPrefill:
    """Run a prompt int64 [n] with images through the whole model and fill `cache`.

    Only the whole model knows what its decoder needs: attention masks within an image, positions of three dimensions,
    features that are added to deeper blocks. The position at which text continues is stored as `cache.shift`: with
    positions of three dimensions it differs from the number of tokens.

    Args:
        target: a target that takes images.
        ids: the prompt, image tokens in place.
        inputs: the processor's other tensors (pixel_values, image_sizes, ...).
        cache: an empty cache.
        probe: observes the attention.

    Raises InputError where prompt and images do not fit each other."""
    merged: list[Tensor] = []

    def record_embeddings(_: nn.Module, __: Any, call: dict[str, Any]) -> None:
        merged.append(call["inputs_embeds"][0])

    base = target.model.base_model
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = None  # left over from the previous prompt
    handle = target.decoder.register_forward_pre_hook(record_embeddings, with_kwargs=True)
    observed: Any = contextlib.nullcontext() if probe is None else observe_attention(target.model, probe.observe)
    try:
        with observed, target.record_aux() as aux:
            out = base(input_ids=ids[None], past_key_values=cache, use_cache=True, **inputs)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"images and prompt do not fit each other ({reason}); give the processor's output") from None
    finally:
        handle.remove()
    cache.shift = _position_shift(base, inputs, len(ids))
    last, aux_features = out.last_hidden_state[0], aux.features()
    features = last if aux_features is None else aux_features[0]
    return MultimodalPrefill(features, last, target.logits_rows(last[None, -1:])[0, 0].float(), merged[0])


def _position_shift(base: Any, inputs: dict[str, Any], length: int) -> int:
    """By how much the position of the next token differs from the number of tokens before it."""
    shift, positions = getattr(base, "rope_deltas", None), inputs.get("position_ids")
    if positions is not None:  # [3 or 4, 1, n], computed beforehand; the last three are those of RoPE
        shift = positions[-3:].max() + 1 - length
    return 0 if shift is None else int(shift)


def image_attention_probe(target: Target, ids: Tensor) -> ImageAttentionProbe:
    """A probe of the attention that a prompt int64 [n] pays to its images, in the last layer with full attention.

    Raises UnsupportedError for a model that takes no images, InputError for a prompt without image tokens."""
    if not hasattr(target.model.config, "vision_config"):
        raise UnsupportedError(f"{type(target.model).__name__}: takes no images; leave them out")
    full_attention = [layer for layer, window in enumerate(target.windows) if window is None]
    layer = full_attention[-1] if full_attention else target.n_layers - 1
    return ImageAttentionProbe(ids, int(target.model.config.image_token_id), layer)
