"""The folder to publish, as the checks and the card see it. Only headers are read, never a weight."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.files import read_json
from dfrot.inputs.gguf.folder import gguf_file
from dfrot.inputs.gguf.header import read_header as read_gguf_header
from dfrot.lineage import read_stage_record
from dfrot.quant.config import QUANT_METHOD, DfqConfig
from dfrot.safetensors_file import TensorEntry, read_header

PACKED, DRAFT, SPECULATORS, GGUF = "dfq", "dfq draft", "speculators", "gguf"
DRAFT_GGUF = "gguf draft"
COMPRESSED_TENSORS, GPTQ = "compressed-tensors", "gptq"
TITLES = {
    PACKED: "a packed checkpoint of dfq",
    DRAFT: "a speculative draft of dfq",
    SPECULATORS: "a speculative draft in the speculators layout",
    DRAFT_GGUF: "a speculative draft as a GGUF file for llama.cpp",
    GGUF: "a GGUF file for llama.cpp",
    COMPRESSED_TENSORS: "compressed-tensors",
    GPTQ: "GPTQ",
}
"""What can be published -> in words."""
DRAFTS = (DRAFT, SPECULATORS, DRAFT_GGUF)
GGUF_DRAFT_ARCHS = ("eagle3", "dflash")
"""`general.architecture` of GGUF files that hold a draft, not a model."""
REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)


@dataclass
class PublishedFolder:
    """A folder to publish."""

    folder: Path
    """The folder."""
    format: str
    """One of TITLES."""
    repository: str
    """ORG/NAME on the hub."""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json, or draft.json; empty for GGUF."""
    record: dict[str, Any] = field(default_factory=dict)
    """stage.json; empty where there is none."""
    shards: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    """Safetensors file -> its tensors."""
    damaged: dict[str, str] = field(default_factory=dict)
    """File whose header cannot be read -> why."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of a GGUF file: its metadata."""
    base: str | None = None
    """Hub id of the model that it was made from."""
    base_folder: Path | None = None
    """A folder with the base model's small files at least; None: not at hand."""
    license: str | None = None
    """Licence by the hub's identifier."""
    card: str = ""
    """The folder's own README.md; empty: dfq writes one."""
    card_entries: dict[str, Any] = field(default_factory=dict)
    """Its front matter."""

    @property
    def name(self) -> str:
        """NAME of the repository."""
        return self.repository.partition("/")[2]

    @property
    def is_draft(self) -> bool:
        """Whether it is a speculative draft, which has no tokenizer of its own."""
        return self.format in DRAFTS

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        """All tensors by name."""
        return {name: entry for entries in self.shards.values() for name, entry in entries.items()}

    @property
    def quantization(self) -> dict[str, Any]:
        """`quantization_config` of config.json; empty where there is none."""
        entry = self.config.get("quantization_config")
        return entry if isinstance(entry, dict) else {}

    def file_names(self) -> list[str]:
        """Everything in the folder but directories, relative, in order."""
        paths = sorted(self.folder.rglob("*"))
        return [path.relative_to(self.folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir()]


def read_published_folder(folder: Path, repository: str) -> PublishedFolder:
    """What `folder` is. Raises InputError or UnsupportedError for what cannot be published, with what can."""
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"`to` {repository!r}: is not ORG/NAME of the hub", field="to")
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a result of dfq quantize, export or draft", file=folder)
    subject = PublishedFolder(folder, _format(folder), repository, record=read_stage_record(folder))
    if subject.format == GGUF:
        file = _gguf_file(folder)
        try:
            subject.metadata = read_gguf_header(file).metadata
        except DfqError as error:
            subject.damaged[file.name] = _reason(error, file)
        if _holds_draft(subject):
            subject.format = DRAFT_GGUF
    else:
        subject.config = _json_object(folder / ("draft.json" if subject.format == DRAFT else "config.json"))
    for file in sorted(folder.glob("*.safetensors")):
        try:
            subject.shards[file.name] = read_header(file)
        except DfqError as error:
            subject.damaged[file.name] = _reason(error, file)
    return subject


def _format(folder: Path) -> str:
    """One of TITLES. Raises InputError or UnsupportedError for anything else."""
    if (folder / "draft.json").is_file():
        return DRAFT
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")):
            return GGUF
        kind = read_stage_record(folder).get("kind")
        what = f"is a result of dfq {kind}" if isinstance(kind, str) else "holds no config.json, draft.json or .gguf"
        raise InputError(f"{folder}: {what}; give a packed checkpoint, an export or a draft", file=folder)
    config = _json_object(folder / "config.json")
    if "speculators_model_type" in config:
        return SPECULATORS
    entry = config.get("quantization_config")
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    if method == QUANT_METHOD:
        dfq = DfqConfig.of(config, str(folder / "config.json"))
        if dfq is not None and dfq.scheme is not None and not dfq.fake:
            return PACKED
        problem = "is simulated" if dfq is not None and dfq.fake else "is rotated, not quantized"
        raise UnsupportedError(f"{folder}: {problem}; publish what dfq quantize or dfq export made of it", file=folder)
    if method in (COMPRESSED_TENSORS, GPTQ):
        return str(method)
    what = f"is quantized by {method}" if isinstance(method, str) else "is not quantized"
    raise UnsupportedError(
        f"{folder}: {what[:80]}; dfq publishes packed checkpoints, compressed-tensors, GPTQ, GGUF and drafts",
        file=folder,
    )


def _gguf_file(folder: Path) -> Path:
    """The GGUF file of a folder that is published. Raises InputError for several, such as a target and its draft: they
    are served by name, and a repository has one card."""
    files = sorted(folder.glob("*.gguf"))
    try:
        return gguf_file(folder) or files[0]
    except InputError as error:
        names = ", ".join(file.name for file in files[:4])
        raise InputError(
            f"{folder}: holds several GGUF models ({names}); publish each from a folder of its own", file=folder
        ) from error


def _holds_draft(subject: PublishedFolder) -> bool:
    """Whether a GGUF file is a draft: by its architecture, or, where it cannot be read, by the record."""
    arch = subject.metadata.get("general.architecture")
    return arch in GGUF_DRAFT_ARCHS or (arch is None and subject.record.get("kind") == "draft export")


def _json_object(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: is not a JSON object; restore the file", file=file)
    return value


def _reason(error: DfqError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ").partition(";")[0]
