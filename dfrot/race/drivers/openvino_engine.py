"""OpenVINO GenAI on a folder of optimum-intel. Losses come from the same model in OpenVINO itself."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai


class OpenVinoEngine:
    """A folder with openvino_model.xml."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.path, self.threads = path, threads
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = context
        self.properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipe = openvino_genai.LLMPipeline(path, "CPU", scheduler_config=scheduler, **self.properties)

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        capabilities = " ".join(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        return {"version": f"openvino-genai {openvino_genai.__version__}", "kernels": f"CPU plugin: {capabilities}"}

    def generate(self, ids: list[int], count: int) -> tuple[float, float, list[int]]:
        """Seconds to the first token and of the `count` behind it, and all of them."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = 1 + count
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        times: list[float] = []

        def note(_: Any) -> Any:
            times.append(time.perf_counter())
            return openvino_genai.StreamingStatus.RUNNING

        begin = time.perf_counter()
        out = self.pipe.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        total = time.perf_counter() - begin
        first = out.perf_metrics.get_ttft().mean / 1e3
        return first, total - first, [int(token) for token in out.tokens[0]]

    def logits(self, ids: list[int]) -> Any:
        """Logits [n, V]."""
        core = openvino.Core()
        compiled = core.compile_model(f"{self.path}/openvino_model.xml", "CPU", self.properties)
        names = {name for port in compiled.inputs for name in port.get_names()}
        count = len(ids)
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, count), dtype=np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        request = compiled.create_infer_request()
        out = request.infer({name: value for name, value in inputs.items() if name in names})
        logits = np.array(out[compiled.output("logits")][0], dtype=np.float32)
        del request, compiled
        gc.collect()
        return logits


ENGINE = OpenVinoEngine
