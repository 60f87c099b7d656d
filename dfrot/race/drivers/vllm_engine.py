"""vLLM on a 16-bit folder or a compressed-tensors export, in one process."""

from __future__ import annotations

import time
from typing import Any

import vllm


class VllmEngine:
    """A folder in Hugging Face's layout."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.model = vllm.LLM(
            model=path,
            dtype="bfloat16",
            max_model_len=context,
            max_num_seqs=1,
            max_num_batched_tokens=context,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        return {"version": f"vllm {vllm.__version__}", "kernels": self._kernels()}

    def _kernels(self) -> str:
        """Classes that serve the linears, as far as vLLM shows them."""

        def classes(model: Any) -> list[str]:
            names = set()
            for module in model.modules():
                scheme = getattr(module, "scheme", None)
                kernel = getattr(scheme, "kernel", None)
                method = getattr(module, "quant_method", None)
                served = kernel or scheme or method
                if served is not None and hasattr(module, "weight_scale" if scheme else "weight"):
                    names.add(type(served).__name__)
            return sorted(names)

        try:
            return ", ".join(self.model.apply_model(classes)[0])
        except Exception as error:
            return f"not shown ({type(error).__name__})"

    def _run(self, ids: list[int], tokens: int, **more: Any) -> tuple[float, Any]:
        parameters = vllm.SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False, **more
        )
        begin = time.perf_counter()
        (out,) = self.model.generate({"prompt_token_ids": ids}, parameters, use_tqdm=False)
        return time.perf_counter() - begin, out

    def generate(self, ids: list[int], count: int) -> tuple[float, float, list[int]]:
        """Seconds to the first token and of the `count` behind it: the difference of two calls."""
        first, out = self._run(ids, 1)
        if not count:
            return first, 0.0, list(out.outputs[0].token_ids)
        total, out = self._run(ids, 1 + count)
        return first, total - first, list(out.outputs[0].token_ids)

    def losses(self, ids: list[int]) -> list[float]:
        """Negative log-likelihood of ids[1:]."""
        _, out = self._run(ids, 1, prompt_logprobs=0)
        return [-row[token].logprob for row, token in zip(out.prompt_logprobs[1:], ids[1:])]


ENGINE = VllmEngine
