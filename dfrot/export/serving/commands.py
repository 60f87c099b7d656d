"""The command that serves a published model, per format."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dfrot.export.serving.command import ServedFolder, serving_command

TITLES = {"vllm": "vLLM", "sglang": "SGLang"}


def serving_commands(
    kind: str, repository: str, file: str | None = None, target: str | None = None, served: Sequence[ServedFolder] = ()
) -> list[tuple[str, str]]:
    """(engine, command) for a model on the hub, the engine that is meant for the format first.

    kind: `dfq`, `dfq draft`, `speculators` or the name of an export format. file: of GGUF, the file in the repository.
    target: hub id or folder of the model that a draft is for. served: of exports, the engines that serve it
    (`planning.engines_for`)."""
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
            return [(TITLES[folder.engine], serving_command(folder.engine, folder, name)) for folder in served]
