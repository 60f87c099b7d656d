"""`--plan`: what a command would read, write and reuse, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from dfrot_cli import show
from dfrot_cli.options import Common


def state(out: Path | None, common: Common) -> str:
    """The state of the output path, and what a run would therefore do."""
    if out is None:
        return "nothing is written"
    if out.exists():
        if common.overwrite:
            return "exists; would be replaced when the new result is complete"
        return "exists; would be refused (see --overwrite)"
    if (out.parent / f".{out.name}.partial").exists():
        return "an interrupted run is there; would " + ("start over" if common.resume is False else "continue")
    return "new"


def numbered(folders: Sequence[Path]) -> dict[str, Any]:
    """The checkpoints of a command that takes several, as inputs of its plan."""
    return {f"model {number}": folder for number, folder in enumerate(folders, 1)}


def _rendering(inputs: Mapping[str, Any], dataset: Any) -> str | None:
    """How conversations of the dataset will become text; None where it has none, or no model is read."""
    folder = inputs.get("model", inputs.get("model 1"))
    if not isinstance(folder, Path) or not isinstance(dataset, str):
        return None
    from dfrot.data.text import rendering_of

    return rendering_of(dataset, folder)


def plan(kind: str, inputs: Mapping[str, Any], settings: Any, out: Path | None, common: Common) -> None:
    """Print the plan of `dfq KIND`: inputs, settings (a dataclass or a mapping), output and its state."""
    options = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else dict(settings)
    paths = {name: str(value) for name, value in inputs.items()}
    if (rendering := _rendering(inputs, options.get("dataset"))) is not None:
        options["conversations"] = rendering
    result = {"output": None if out is None else str(out), "state": state(out, common)}
    if common.json:
        show.as_json({"command": kind, "inputs": paths, "settings": options, **result})
    else:
        show.facts(f"plan: dfq {kind}", {**paths, **options, **result})
