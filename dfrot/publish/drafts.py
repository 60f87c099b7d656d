"""What a draft's folder says of the draft and of its target, for dfq's own format and both exports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.export.gguf.draft import FINGERPRINT
from dfrot.files import file_sha256
from dfrot.publish.published_folder import DRAFT, DRAFT_GGUF, PublishedFolder

SIZES = ("hidden_size", "num_layers", "block_size", "draft_vocab_size", "quantized", "quantized_head")
OPTIONS = {"num_layers": "--draft-layers", "block_size": "--block-size", "draft_vocab_size": "--draft-vocab"}
EXPORTS = {"speculators": ("compressed-tensors", "vLLM"), DRAFT_GGUF: ("gguf", "llama.cpp")}
"""Format of a draft -> the format in which its engine gets the target, and the engine."""


@dataclass(frozen=True)
class DraftFacts:
    """A draft, as far as its folder describes it."""

    arch: str
    """`dream`, `eagle3` or `dflash`; empty where nothing names it."""
    config: dict[str, Any]
    """What draft.json holds; empty for drafts that dfq did not export."""
    target: str
    """Fingerprint of the checkpoint that it was trained on; empty where it is not recorded."""
    weights: str
    """SHA-256 of the draft's weights as trained, in draft.safetensors; empty where it is not recorded."""

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what the card lists."""
        named = {"arch": self.arch, **{name: self.config.get(name) for name in SIZES}}
        rows = [(name.replace("_", " "), str(value)) for name, value in named.items() if value]
        return [*rows, ("fingerprint of its target", f"`{self.target}`")] if self.target else rows

    def options(self) -> str:
        """The options of `dfq draft train` that its config holds."""
        words = [f"--arch {self.arch}"] if self.arch else []
        for name, option in OPTIONS.items():
            if isinstance(value := self.config.get(name), int) and value:
                words.append(f"{option} {value}")
        if isinstance(quantized := self.config.get("quantized"), str) and quantized:
            words.append(f"--quantize-draft {quantized}")
            if quantized == "w4":
                words.append(f"--quantize-draft-head {self.config.get('quantized_head') or 'w4'}")
        return "".join(f" {word}" for word in words)


def draft_facts(subject: PublishedFolder) -> DraftFacts:
    """The facts of a draft's folder."""
    request = subject.record.get("request")
    request = request if isinstance(request, dict) else {}
    if subject.format == DRAFT:
        config, arch = subject.config, subject.config.get("arch")
    else:
        recorded = request.get("draft")
        config = recorded if isinstance(recorded, dict) else {}
        in_file = "general.architecture" if subject.format == DRAFT_GGUF else "speculators_model_type"
        arch = (subject.metadata or subject.config).get(in_file) or config.get("arch")
    target = subject.metadata.get(FINGERPRINT) or config.get("target_fingerprint")
    weights = _own_weights(subject) if subject.format == DRAFT else request.get("weights")
    return DraftFacts(_text(arch), config, _text(target), _text(weights))


def target_note(subject: PublishedFolder, facts: DraftFacts) -> str:
    """Which checkpoint an engine must serve beside an exported draft, for the card; empty for dfq's own drafts, which
    name it themselves."""
    if subject.format not in EXPORTS:
        return ""
    export, engine = EXPORTS[subject.format]
    name = f"the checkpoint with fingerprint `{facts.target[:12]}`" if facts.target else "the checkpoint"
    return (
        f"The draft reads layers of {name} that it was trained on (`packed` above). Beside it {engine} must serve that "
        f"checkpoint, exported with `dfq export --model packed --to {export}`; beside another model it guesses badly."
    )


def _own_weights(subject: PublishedFolder) -> str | None:
    file = subject.folder / "draft.safetensors"
    return file_sha256(file) if file.is_file() else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
