"""llama.cpp through the C interface that llama-cpp-python binds."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
from llama_family import BATCH, LlamaFamily  # type: ignore[import-not-found]


class LlamaCppEngine(LlamaFamily):  # type: ignore[misc]
    """A GGUF file."""

    api = llama_cpp

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

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        features = llama_cpp.llama_print_system_info().decode()
        names = [part.split("=")[0].split(":")[-1].strip() for part in features.split("|") if "= 1" in part]
        kept = [name for name in names if name.startswith(("AVX512", "AVX_VNNI", "AMX", "REPACK", "NEON", "LLAMAFILE"))]
        return {"version": f"llama-cpp-python {llama_cpp.__version__}", "kernels": " ".join(kept)}

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _logits(self, count: int, every: bool) -> Any:
        rows = count if every else 1
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(rows, self.vocab))


ENGINE = LlamaCppEngine
