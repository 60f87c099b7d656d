"""onnxruntime-genai on a folder of its model builder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime_genai as og


class OnnxRuntimeEngine:
    """A folder with genai_config.json."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        config = og.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)
        self.context = context
        self.generator: Any = None

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        return {"version": f"onnxruntime-genai {og.__version__}", "kernels": "CPU, MatMulNBits accuracy_level 4"}

    def _start(self) -> None:
        parameters = og.GeneratorParams(self.model)
        # no end token: the shortest allowed text is as long as the longest
        parameters.set_search_options(max_length=self.context, min_length=self.context, do_sample=False)
        self.generator = og.Generator(self.model, parameters)

    def prefill(self, ids: list[int]) -> int:
        """The greedy token behind a prompt."""
        self._start()
        self.generator.append_tokens(np.array([ids], dtype=np.int32))
        return self._next()

    def step(self, token: int) -> int:
        """The greedy token behind one more, which is the one that was generated last."""
        return self._next()

    def _next(self) -> int:
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])

    def logits(self, ids: list[int]) -> Any:
        """Logits [n, V]."""
        self._start()
        self.generator.append_tokens(np.array([ids], dtype=np.int32))
        logits = np.array(self.generator.get_output("logits"), dtype=np.float32)
        return logits.reshape(-1, logits.shape[-1])


ENGINE = OnnxRuntimeEngine
