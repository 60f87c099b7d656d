"""From the name of a model on the command line to its folder: downloads show progress, stand-ins are noted."""

from __future__ import annotations

from pathlib import Path

from dfrot_cli import show


def model_folder(model: str) -> Path:
    """`dfrot.hub.resolve_model`, shown."""
    from dfrot.hub import resolve_model

    with show.progress() as progress:
        return resolve_model(model, progress, show.note)


def served_name(folder: Path) -> str:
    """The name of a model for clients: its hub id where it lies in the hub's cache, else the folder's name."""
    from dfrot.lineage import hub_source

    return hub_source(folder).get("hub_id", folder.resolve().name)
