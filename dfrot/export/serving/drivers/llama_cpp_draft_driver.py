"""llama.cpp's server with a draft: `python -I llama_cpp_draft_driver.py REQUEST ANSWER`, in an environment that has
xllamacpp, which is that server as a Python package, and need not have dfq.

Reads the JSON file REQUEST and writes the JSON file ANSWER, as `dfrot/export/serving/drafts.py` describes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PACKAGES = ("xllamacpp",)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load target and draft, decode every prompt greedily; tokens and what was accepted."""
    import xllamacpp

    longest = max(len(prompt) for prompt in request["prompts"])
    params = xllamacpp.CommonParams()
    params.model.path = next(iter(sorted(Path(request["target"]).glob("*.gguf")))).as_posix()
    params.n_ctx = longest + request["new_tokens"] + request["chain"] + 1
    params.n_parallel = 1
    params.warmup = False
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = request["threads"]
    kind = f"COMMON_SPECULATIVE_TYPE_DRAFT_{request['arch'].upper()}"
    params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    draft = params.speculative.draft
    draft.mparams.path = next(iter(sorted(Path(request["draft"]).glob("*.gguf")))).as_posix()
    draft.n_max = request["chain"]
    draft.n_min = 0
    draft.p_min = 0.0
    for cpu in (draft.cpuparams, draft.cpuparams_batch):
        cpu.n_threads = request["threads"]
    for name, value in request["options"].items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    answers = [complete(server, prompt, request["new_tokens"]) for prompt in request["prompts"]]
    tokens = [answer["tokens"] for answer in answers]
    timings = [answer["timings"] for answer in answers]
    accepted = sum(timing.get("draft_n_accepted", 0) for timing in timings)
    # a pass of the target gives its accepted draft tokens and one of its own; the first token comes from the prompt
    rounds = sum(len(row) - 1 for row in tokens) - accepted
    drafted = sum(timing.get("draft_n", 0) for timing in timings)
    return {"tokens": tokens, "rounds": rounds, "drafted": drafted, "accepted": accepted, "accepted_at": []}


def complete(server: Any, prompt: list[int], count: int) -> dict[str, Any]:
    """The server's answer to a prompt of token ids. Raises RuntimeError where it is an error."""
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "verbose": True,  # token ids are in the server's own form of the answer alone
        }
    )
    if "__verbose" not in answer:
        raise RuntimeError(f"no completion: {answer}")
    return answer["__verbose"]  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out
    from driver_script import answer_request  # type: ignore[import-not-found]

    answer_request(run, PACKAGES)
