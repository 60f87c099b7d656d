"""The command that serves an exported folder, or a model on the hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dfrot.export.gguf.writer import FILE_NAME

README = "README.md"
KV_FLAG = "--kv-cache-dtype int4_per_token_head"
SPECULATIVE_TOKENS = 3
"""Draft tokens per round where a draft does not say how many."""
TITLES = {"vllm": "vLLM", "sglang": "SGLang"}


@dataclass(frozen=True)
class ServedFolder:
    """What the command that serves a folder depends on."""

    engine: str
    """One of `promises.PREFERENCES`."""
    format: str
    """Export format."""
    scheme: str
    """What it declares."""
    storage: str = ""
    """How weights are kept."""
    kv_bits: int = 16
    """Bits of the KV cache of the checkpoint it was made from."""
    flags: tuple[str, ...] = ()
    """Options that the engine needs to serve it as declared."""


def takes_kv_flag(engine: str, kv_bits: int) -> bool:
    """Whether `engine` has a KV cache of so many bits, asked for by `KV_FLAG`. It rounds in a way of its own."""
    return engine == "vllm" and kv_bits == 4


def serving_command(engine: str, folder: ServedFolder, path: str = ".") -> str:
    """The command line by which `engine` serves an exported folder that lies at `path`, or has that name on the hub."""
    words = list(folder.flags) if engine == folder.engine else []
    if engine == "vllm":
        if takes_kv_flag(engine, folder.kv_bits):
            words.append(KV_FLAG)
        return " ".join([f"vllm serve {path}", *words])
    if engine == "sglang":
        return " ".join([f"python -m sglang.launch_server --model-path {path}", *words])
    if engine == "llama.cpp":
        return " ".join([f"llama-server -m {path}/{FILE_NAME}", *words])
    names = ", ".join([*(["CompressedTensorsConfig"] if words else []), "pipeline"])
    call = ", ".join(["'text-generation'", f"'{path}'", *words])
    return f"python -c \"from transformers import {names}; print(pipeline({call})('Hello'))\""


def serving_commands(
    kind: str,
    repository: str,
    file: str | None = None,
    target: str | None = None,
    served: Sequence[ServedFolder] = (),
    config: Mapping[str, Any] = MappingProxyType({}),
) -> list[tuple[str, str]]:
    """(engine, command) for a model on the hub, the engine that is meant for the format first.

    kind: `dfq`, `dfq draft`, `speculators`, `gguf draft` or the name of an export format. file: of GGUF, the file in
    the repository. target: hub id or folder of the model that a draft is for. served: of exports, the engines that
    serve it (`planning.engines_for`). config: of a speculators draft, its config.json; of a GGUF draft, the file's
    metadata."""
    name = shlex.quote(repository)
    verifier = shlex.quote(target or "TARGET")
    match kind:
        case "dfq":
            return [("dfq", f"dfq serve --model {name}")]
        case "dfq draft":
            fetch = f"hf download {name} --local-dir draft"
            return [("dfq", f"{fetch} && dfq serve --model {verifier} --draft draft")]
        case "speculators":
            speculative = {
                "model": repository,
                "num_speculative_tokens": _speculative_tokens(config),
                "method": config.get("speculators_model_type", "eagle3"),
            }
            return [("vLLM", f"vllm serve {verifier} --speculative-config {shlex.quote(json.dumps(speculative))}")]
        case "gguf draft":
            stored = shlex.quote(file or FILE_NAME)
            fetch = f"hf download {name} {stored} --local-dir draft"
            arch, count = config.get("general.architecture", "eagle3"), _block_tokens(config)
            options = f"-md draft/{stored} --spec-type draft-{arch} --spec-draft-n-max {count}"
            return [("llama.cpp", f"{fetch} && llama-server --hf-repo {verifier} {options}")]
        case "gguf":
            part = f" --hf-file {shlex.quote(file)}" if file is not None else ""
            return [("llama.cpp", f"llama-server --hf-repo {name}{part}")]
        case _:
            return [(TITLES[folder.engine], serving_command(folder.engine, folder, name)) for folder in served]


def _speculative_tokens(config: Mapping[str, Any]) -> int:
    """Draft tokens per round that a speculators config asks for."""
    try:
        return int(config["speculators_config"]["proposal_methods"][0]["speculative_tokens"])
    except (KeyError, IndexError, TypeError, ValueError):
        return SPECULATIVE_TOKENS


def _block_tokens(metadata: Mapping[str, Any]) -> int:
    """Draft tokens per round of a draft in a GGUF file: a block without its root, or the usual number."""
    size = metadata.get("dflash.block_size")
    return size - 1 if isinstance(size, int) and size > 1 else SPECULATIVE_TOKENS


def needed_packages(engine: str, format: str) -> str:
    """What must be installed besides the engine, as words of pip; empty for nothing."""
    if engine == "transformers":
        return {"compressed-tensors": "transformers compressed-tensors accelerate", "gptq": "gptqmodel optimum"}[format]
    return ""


def readme(folder: ServedFolder, record: dict[str, Any]) -> str:
    """README.md of an exported folder: what it holds, how to serve it, what to know. record: `planning.record_of`."""
    packages = needed_packages(folder.engine, folder.format)
    lines = [
        f"# {folder.scheme} for {folder.engine}",
        "",
        f"Written by `dfq export --for {folder.engine}` as {folder.format} ({folder.storage}). From this folder:",
        "```",
        *([f"pip install {packages}"] if packages else []),
        str(record["command"]),
        "```",
    ]
    if record["warnings"]:
        lines += ["", *(f"- {text}" for text in record["warnings"])]
    return "\n".join(lines) + "\n"
