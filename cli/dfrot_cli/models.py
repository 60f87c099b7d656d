"""From the name of a model on the command line to its folder: downloads show progress, stand-ins are noted."""

from __future__ import annotations

from pathlib import Path

from dfrot_cli import show


def model_folder(model: str) -> Path:
    """`dfrot.hub.resolve_model`, shown."""
    from dfrot.hub import resolve_model

    with show.progress() as progress:
        return resolve_model(model, progress, show.note)
