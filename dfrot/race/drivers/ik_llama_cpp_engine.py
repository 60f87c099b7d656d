"""ik_llama.cpp through the C interface that ik-llama-cpp-python binds."""

from __future__ import annotations

from typing import Any

import ik_llama_cpp._ctypes_api as api
import numpy as np
from llama_family import BATCH, LlamaFamily  # type: ignore[import-not-found]


class IkLlamaCppEngine(LlamaFamily):  # type: ignore[misc]
    """A GGUF file, its tensors repacked when they are loaded."""

    api = api

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

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        from importlib.metadata import version

        return {"version": f"ik-llama-cpp-python {version('ik-llama-cpp-python')}", "kernels": "iqk, repacked"}

    def _forget(self) -> None:
        api.llama_kv_cache_clear(self.context)

    def _logits(self, count: int, every: bool) -> Any:
        rows = range(count) if every else (count - 1,)
        pointers = [api.llama_get_logits_ith(self.context, row) for row in rows]
        return np.stack([np.ctypeslib.as_array(pointer, shape=(self.vocab,)) for pointer in pointers])


ENGINE = IkLlamaCppEngine
