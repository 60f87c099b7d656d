"""llama.cpp through the C interface that llama-cpp-python binds."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np

BATCH = 512  # llama.cpp's own default


class LlamaCppEngine:
    """A GGUF file."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.owner = llama_cpp.Llama(
            model_path=path,
            n_ctx=context,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )
        self.context: Any = self.owner.ctx
        self.vocab = int(self.owner.n_vocab())
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.position = 0

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        features = llama_cpp.llama_print_system_info().decode()
        names = [part.split("=")[0].split(":")[-1].strip() for part in features.split("|") if "= 1" in part]
        kept = [name for name in names if name.startswith(("AVX512", "AVX_VNNI", "AMX", "REPACK", "NEON", "LLAMAFILE"))]
        return {"version": f"llama-cpp-python {llama_cpp.__version__}", "kernels": " ".join(kept)}

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def _decode(self, ids: list[int], every: bool) -> Any:
        """Run at most BATCH ids; logits [n, V] of every row, or of the last alone."""
        self.batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            self.batch.token[row] = token
            self.batch.pos[row] = self.position + row
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = 0
            self.batch.logits[row] = every or row == len(ids) - 1
        if code := llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self.position += len(ids)
        rows = len(ids) if every else 1
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(rows, self.vocab))

    def prefill(self, ids: list[int]) -> int:
        """The greedy token behind a prompt."""
        self._clear()
        for start in range(0, len(ids), BATCH):
            logits = self._decode(ids[start : start + BATCH], every=False)
        return int(logits[0].argmax())

    def step(self, token: int) -> int:
        """The greedy token behind one more."""
        return int(self._decode([token], every=False)[0].argmax())

    def logits(self, ids: list[int]) -> Any:
        """Logits [n, V]."""
        self._clear()
        starts = range(0, len(ids), BATCH)
        return np.concatenate([self._decode(ids[start : start + BATCH], every=True).copy() for start in starts])


ENGINE = LlamaCppEngine
