"""What `dfq bench generate` times: a model that can prefill a prompt and decode token by token; llama.cpp as one.

torch is not imported here: a process that measures llama.cpp's memory shall not hold it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dfrot.errors import ResourceError

PREFIX = 32  # tokens in the cache before decoding starts
PAUSE = 0.05  # seconds between turns: threads of the one before stop spinning


class Runner(Protocol):
    """tokens() -> prefill(n): forget everything, run n tokens. decode(n): after a short prompt, n greedy tokens."""

    def prefill(self, count: int) -> None: ...

    def start(self) -> None: ...

    def decode(self, count: int) -> None: ...


def one_turn(runner: Runner, prefill: int, decode: int) -> tuple[float, float]:
    """Seconds of a prefill of `prefill` tokens, and of `decode` greedy tokens behind a prompt of PREFIX."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    runner.prefill(prefill)
    middle = time.perf_counter()
    runner.start()
    start = time.perf_counter()
    runner.decode(decode)
    return middle - begin, time.perf_counter() - start


def prompt(count: int, vocab: int) -> list[int]:
    """`count` token ids: which ones does not matter for the speed."""
    return [(17 * i + 3) % min(vocab, 311) for i in range(count)]


class LlamaCpp:
    """llama.cpp through its Python package, on a GGUF file. Raises ResourceError where it is not installed."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise ResourceError("the package llama-cpp-python is not installed: pip install 'dfq[bench]'") from None
        self.library: Any = llama_cpp
        self.model: Any = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.vocab = int(self.model.n_vocab())

    def prefill(self, count: int) -> None:
        self.model.reset()
        self.model.eval(prompt(count, self.vocab))

    def start(self) -> None:
        self.prefill(PREFIX)

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.model.eval([self._greedy()])

    def _greedy(self) -> int:
        address = self.library.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(address, shape=(self.vocab,))))
