"""What `dfq bench generate` times: a model that prefills a prompt and decodes token by token. llama.cpp is one.

torch is not imported here, so that a process that measures llama.cpp's memory does not hold it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dfrot.errors import ResourceError

PREFIX = 32  # tokens in the cache before decoding starts
PAUSE = 0.05  # seconds between turns, for threads of the previous contender to stop spinning
TOKEN_IDS = 311  # distinct ids of a prompt
BATCH = 512  # tokens that llama.cpp processes at once


class Runner(Protocol):
    """A loaded model."""

    def prefill(self, count: int) -> None:
        """Clear the cache, then run a prompt of `count` tokens."""

    def start(self) -> None:
        """Clear the cache, then run a prompt of PREFIX tokens."""

    def decode(self, count: int) -> None:
        """Generate `count` greedy tokens behind what ran before."""


def time_turn(runner: Runner, prefill: int, decode: int) -> tuple[float, float]:
    """Seconds of a prefill of `prefill` tokens, and of `decode` greedy tokens behind a prompt of PREFIX."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    runner.prefill(prefill)
    middle = time.perf_counter()
    runner.start()
    start = time.perf_counter()
    runner.decode(decode)
    return middle - begin, time.perf_counter() - start


def prompt_tokens(count: int, vocab: int) -> list[int]:
    """`count` token ids; their values do not matter for the speed."""
    return [(17 * i + 3) % min(vocab, TOKEN_IDS) for i in range(count)]


class LlamaCpp:
    """llama.cpp through its Python package. A `Runner`."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the GGUF file `path` for `context` positions. Raises ResourceError where llama.cpp is not installed."""
        try:
            import llama_cpp
        except ImportError:
            raise ResourceError("the package llama-cpp-python is not installed: pip install 'dfq[bench]'") from None
        self.library: Any = llama_cpp
        self.model: Any = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.vocab = int(self.model.n_vocab())

    def prefill(self, count: int) -> None:
        """As `Runner.prefill`."""
        self.model.reset()
        self.model.eval(prompt_tokens(count, self.vocab))

    def start(self) -> None:
        """As `Runner.start`."""
        self.prefill(PREFIX)

    def decode(self, count: int) -> None:
        """As `Runner.decode`."""
        for _ in range(count):
            self.model.eval([self._greedy()])

    def _greedy(self) -> int:
        address = self.library.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(address, shape=(self.vocab,))))
