"""From logits to the distribution that is sampled: penalties and filters that depend on the tokens before.

The filters are transformers' own definitions. Any callable of the same form, (ids int64 [1, n], scores float32
[1, V]) -> scores, may join the chain: transformers' logits processors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dfrot.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Processor(Protocol):
    """A logits processor in transformers' form: (ids int64 [1, n], scores float32 [1, V]) -> scores float32 [1, V]."""

    def __call__(self, ids: Tensor, scores: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0 and top_p 1 leave everything. repetition_penalty 1 is none (CTRL, 1909.05858).
    processors run first, then the penalty, temperature, top-k, top-p."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"--temperature {self.temperature}: cannot be negative; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: a number above 0 and up to 1 is needed")
        if self.top_k < 0:
            raise InputError(f"--top-k {self.top_k}: cannot be negative; 0 keeps everything")
        if self.repetition_penalty <= 0:
            raise InputError(f"--repetition-penalty {self.repetition_penalty}: must be positive; 1 is none")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    @property
    def needs_prefix(self) -> bool:
        """Whether scores depend on the tokens before."""
        return bool(self.processors) or self.repetition_penalty != 1

    def processed(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """Penalized logits float32 [V] behind `prefix` (prompt included): what greedy decoding takes the argmax of."""
        if not self.needs_prefix:
            return logits
        import torch  # in the functions that compute: settings are read without it

        ids = torch.tensor([list(prefix)])
        scores = logits[None]
        for processor in self.processors:
            scores = processor(ids, scores)
        if self.repetition_penalty != 1:
            used = scores.gather(1, ids)  # scores of the tokens of the prefix
            used = torch.where(used < 0, used * self.repetition_penalty, used / self.repetition_penalty)
            scores = scores.scatter(1, ids, used)
        return scores[0]

    def probabilities(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """The distribution float32 [V] that is sampled behind `prefix`."""
        import torch

        scores = self.processed(logits, prefix) / self.temperature
        if 0 < self.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1:
            ordered, index = scores.sort(descending=False)
            drop = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            drop[-1] = False
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(0, index, drop), -torch.inf)
        return scores.softmax(-1)

    def pick(self, logits: Tensor, prefix: Sequence[int], generator: torch.Generator) -> int:
        """The next token: the argmax (lowest id on ties), or a sample."""
        if self.greedy:
            return int(self.processed(logits, prefix).argmax())
        return sample(self.probabilities(logits, prefix), generator)


def sample(p: Tensor, generator: torch.Generator) -> int:
    """A draw from p float32 [V], which may be unnormalised."""
    import torch

    return int(torch.multinomial(p, 1, generator=generator))
