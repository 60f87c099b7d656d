"""Resolving the name of a model to a folder: aliases, hub ids, the local hub cache, downloads.

The cache is read before the network is used, and only weights in safetensors, JSON and tokenizer files are ever
fetched: no pickles, no code.
"""

from __future__ import annotations

import difflib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, ResourceError
from dfrot.files import read_json
from dfrot.inputs.gguf.folder import gguf_file, gguf_folder
from dfrot.quant.config import QUANT_METHOD, DfqConfig
from dfrot.stage_folder import RECORD

REFERENCE, REFERENCE_VLM = "reference", "reference-vlm"
SHIPPED = (REFERENCE, REFERENCE_VLM)

ALIASES: dict[str, str] = {
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-13b": "meta-llama/Llama-2-13b-hf",
    "llama2-70b": "meta-llama/Llama-2-70b-hf",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "gemma2-2b": "google/gemma-2-2b",
    "gemma2-9b": "google/gemma-2-9b",
    "gemma3-1b": "google/gemma-3-1b-pt",
    "olmo2-7b": "allenai/OLMo-2-1124-7B",
    "olmoe-1b-7b": "allenai/OLMoE-1B-7B-0924",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "granite3.3-2b": "ibm-granite/granite-3.3-2b-base",
    "granite3.3-8b": "ibm-granite/granite-3.3-8b-base",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
}
"""Alias -> hub id. Base models, as in the papers."""

FETCHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
# original/ and consolidated*: the same weights once more in the layout of their authors
NOT_FETCHED = ("original/*", "consolidated*", "*/*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class AliasEntry:
    """An alias and what is known of its model."""

    alias: str
    """The short name."""
    hub_id: str
    """OWNER/NAME on the hub."""
    folder: Path | None
    """Its folder in the local hub cache, if it is complete there."""


def resolve_model(model: str) -> Path:
    """The checkpoint folder for a folder, a GGUF file, `reference`, `reference-vlm`, an alias or a hub id.

    For a GGUF file, or a folder that holds one, it is the folder that stands for it (see dfrot/inputs/gguf/folder.py).

    Raises InputError for a name that is none of these, ResourceError when the model is not in the cache and cannot be
    fetched: the message says which folder or token would make it work.
    """
    path = Path(model).expanduser()
    if (file := gguf_file(path)) is not None:
        return gguf_folder(file)
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{model}: is a file; give the checkpoint's folder or a .gguf file")
    if model == REFERENCE:
        from dfrot import reference

        return reference.path()
    if model == REFERENCE_VLM:
        return _build_reference_vlm()
    hub_id = ALIASES.get(model.lower(), model)
    if not _HUB_ID.fullmatch(hub_id):
        matches = difflib.get_close_matches(model.lower(), [*ALIASES, *SHIPPED], 1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise InputError(f"{model}: no such folder, alias or hub id{hint} (dfq models lists the aliases)")
    return cached_folder(hub_id) or _download(hub_id)


def known_aliases() -> list[AliasEntry]:
    """Every alias, with its folder in the local hub cache."""
    return [AliasEntry(alias, hub_id, cached_folder(hub_id)) for alias, hub_id in ALIASES.items()]


def cached_folder(hub_id: str) -> Path | None:
    """The folder of a hub model in the local cache, or None when it is missing or incomplete."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _is_complete(folder) else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run: `folder` itself if it is a checkpoint, else those directly inside, 16-bit ones first
    (the baseline), then by name. Raises InputError when there is none."""
    if (folder / "config.json").is_file():
        return [folder]
    visible = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    checkpoints = [path for path in visible if (path / "config.json").is_file()]
    if not checkpoints:
        raise InputError(f"{folder}: holds no checkpoint that a run made; give `models`", field="models", file=folder)
    return sorted(checkpoints, key=_is_quantized)


def _is_quantized(folder: Path) -> bool:
    file = folder / "config.json"
    config = read_json(file)
    foreign = config.get("quantization_config") if isinstance(config, dict) else None
    if isinstance(foreign, dict) and foreign.get("quant_method") != QUANT_METHOD:
        return True
    entry = DfqConfig.of(config, str(file))
    return entry is not None and entry.scheme is not None


def default_dataset(model: str, folder: Path) -> str:
    """The dataset for a model when none is named: `stdlib` for the reference models (nothing else is available offline)
    and where an earlier stage used it, else `wikitext2`."""
    if model in SHIPPED:
        return "stdlib"
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    request = record.get("request") if isinstance(record, dict) else None
    settings = request.get("settings") if isinstance(request, dict) else None
    used = settings.get("dataset") if isinstance(settings, dict) else None
    return "stdlib" if used == "stdlib" else "wikitext2"


def reference_vlm_folder() -> Path:
    """Where the reference VLM is written on first use: beside the hub cache, by its digest."""
    from huggingface_hub import constants

    from dfrot.reference import build_vlm

    return Path(constants.HF_HOME) / "dfq" / build_vlm.digest()[:16] / REFERENCE_VLM


def _build_reference_vlm() -> Path:
    """`reference_vlm_folder`, built if it does not exist. Raises ResourceError where it cannot be written."""
    from dfrot.reference import build_vlm

    folder = reference_vlm_folder()
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".reference-vlm-", dir=folder.parent))
        try:
            build_vlm.write_model(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # no other process built it meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}: reference-vlm cannot be put together there ({error.strerror}); set HF_HOME to a folder that "
            "can be written",
            file=folder,
        ) from None
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether every shard that the index names exists."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    value = read_json(index)
    shards = value.get("weight_map") if isinstance(value, dict) else None
    return isinstance(shards, dict) and all((folder / str(shard)).is_file() for shard in set(shards.values()))


def _download(hub_id: str) -> Path:
    """Fetch a model into the hub cache. Raises ResourceError when that is not possible, with the remedy."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        folder: Any = snapshot_download(hub_id, allow_patterns=list(FETCHED), ignore_patterns=list(NOT_FETCHED))
    except GatedRepoError:
        raise ResourceError(
            f"{hub_id}: access is restricted; accept its licence on its hub page and set HF_TOKEN to a token of "
            "that account, or give as `model` a folder with its files",
            field="model",
        ) from None
    except RepositoryNotFoundError:
        raise ResourceError(
            f"{hub_id}: the hub does not show it; check the name, or set HF_TOKEN to a token that may read it"
        ) from None
    except Exception as error:  # no network, a proxy, a full disk, a timeout: many types, one meaning
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise ResourceError(
            f"{hub_id}: is neither a folder here nor in the hub cache {constants.HF_HUB_CACHE}, and cannot be fetched "
            f"({reason}); put config.json, *.safetensors and the tokenizer files into a folder and give that as "
            "`model`, or set HF_TOKEN where a token is needed",
            field="model",
        ) from None
    return Path(folder)
