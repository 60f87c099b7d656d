"""The command that serves a published model, per format."""

from __future__ import annotations

import shlex


def serving_commands(
    kind: str, repository: str, file: str | None = None, target: str | None = None, online: bool = False
) -> list[tuple[str, str]]:
    """(engine, command) for a model on the hub, the engine that is meant for the format first.

    kind: `dfq`, `dfq draft`, `speculators` or the name of an export format. file: of GGUF, the file in the repository.
    target: hub id or folder of the model that a draft is for. online: the checkpoint has online transforms, which vLLM
    alone applies."""
    name = shlex.quote(repository)
    verifier = shlex.quote(target or "TARGET")
    match kind:
        case "dfq":
            return [("dfq", f"dfq serve --model {name}")]
        case "dfq draft":
            fetch = f"hf download {name} --local-dir draft"
            return [("dfq", f"{fetch} && dfq serve --model {verifier} --draft draft")]
        case "speculators":
            speculative = shlex.quote(f'{{"model": "{repository}", "num_speculative_tokens": 3, "method": "eagle3"}}')
            return [("vLLM", f"vllm serve {verifier} --speculative-config {speculative}")]
        case "gguf":
            part = f" --hf-file {shlex.quote(file)}" if file is not None else ""
            return [("llama.cpp", f"llama-server --hf-repo {name}{part}")]
        case _:
            vllm = ("vLLM", f"vllm serve {name}")
            return [vllm] if online else [vllm, ("SGLang", f"python -m sglang.launch_server --model-path {name}")]
