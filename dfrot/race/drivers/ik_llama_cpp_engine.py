"""ik_llama.cpp through the C interface that ik-llama-cpp-python binds."""

from __future__ import annotations

from typing import Any

import ik_llama_cpp._ctypes_api as api
import numpy as np

BATCH = 512


class IkLlamaCppEngine:
    """A GGUF file, its tensors repacked when they are loaded."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        api.llama_backend_init()
        of_model = api.llama_model_default_params()
        of_model.use_mmap, of_model.repack_tensors = False, True
        self.model: Any = api.llama_model_load_from_file(path.encode(), of_model)
        if not self.model:
            raise RuntimeError(f"{path} was not loaded")
        self.vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context, BATCH, BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.n_seq_max, parameters.flash_attn = 1, True
        self.context: Any = api.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError("no context could be made")
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.position = 0

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        from importlib.metadata import version

        return {"version": f"ik-llama-cpp-python {version('ik-llama-cpp-python')}", "kernels": "iqk, repacked"}

    def _decode(self, ids: list[int], every: bool) -> Any:
        """Run at most BATCH ids; logits [n, V] of every row, or of the last alone."""
        self.batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            self.batch.token[row] = token
            self.batch.pos[row] = self.position + row
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = 0
            self.batch.logits[row] = 1 if every or row == len(ids) - 1 else 0
        if code := api.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self.position += len(ids)
        rows = range(len(ids)) if every else (len(ids) - 1,)
        pointers = [api.llama_get_logits_ith(self.context, row) for row in rows]
        return np.stack([np.ctypeslib.as_array(pointer, shape=(self.vocab,)) for pointer in pointers])

    def _clear(self) -> None:
        api.llama_kv_cache_clear(self.context)
        self.position = 0

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
        return np.concatenate([self._decode(ids[start : start + BATCH], every=True) for start in starts])


ENGINE = IkLlamaCppEngine
