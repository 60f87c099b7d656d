"""OpenAI's penalties and biases as logits processors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class PresencePenalty:
    """OpenAI's `frequency_penalty` and `presence_penalty`: by how often, and by whether, a token occurs in the new
    text; the prompt does not count."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        """prompt: its length in tokens."""
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """ids int64 [1, n], scores float32 [1, V] -> scores."""
        counts = scores.new_zeros(scores.shape[-1]).index_add_(
            0, ids[0, self.prompt :], scores.new_ones(ids.shape[1] - self.prompt)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)


class LogitBias:
    """OpenAI's `logit_bias`: adds a bias to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        """bias: by token id."""
        self.bias = bias

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """ids int64 [1, n], scores float32 [1, V] -> scores."""
        scores = scores.clone()
        for token, value in self.bias.items():
            scores[0, token] += value
        return scores
