"""From logits to the distribution that is sampled: penalties and filters that depend on the tokens before.

The filters are transformers' own definitions. Any callable of the same form, (ids int64 [1, n], scores float32
[1, V]) -> scores, may join the chain: transformers' logits processors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dfrot.settings import check, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COLD, COLDEST = 1e-4, 1e-30  # temperatures below which scores are shifted first; below which float32 has none


class LogitsProcessor(Protocol):
    """A logits processor in transformers' form: (ids int64 [1, n], scores float32 [1, V]) -> scores float32 [1, V]."""

    def __call__(self, ids: Tensor, scores: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from logits: processors first, then the repetition penalty, temperature, top-k and
    top-p."""

    temperature: float = setting(0.0, minimum=0, help="Sampling temperature; 0 is greedy decoding.")
    top_p: float = setting(
        1.0,
        above=0,
        maximum=1,
        help="Sample from the likeliest tokens that together reach this probability; 1 from all.",
    )
    top_k: int = setting(0, minimum=0, help="Sample from this many of the likeliest tokens; 0 from all.")
    repetition_penalty: float = setting(
        1.0,
        above=0,
        help="Divide the scores of tokens that were used already (CTRL, arXiv 1909.05858); 1 changes nothing.",
    )
    processors: Sequence[LogitsProcessor] = ()
    """Logits processors, applied in order."""

    def __post_init__(self) -> None:
        check(self)

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

        scores = self.processed(logits, prefix)
        if self.temperature < COLD:  # quotients could be inf; of distances to the largest score they are at most 0
            scores = scores - scores.max()
        scores = scores / max(self.temperature, COLDEST)
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
