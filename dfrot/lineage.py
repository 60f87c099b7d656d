"""Where a checkpoint comes from, as its stages recorded it: rotation, seeds, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.errors import DfqError
from dfrot.files import digest_bytes, read_json
from dfrot.rotation.rotation import ROTATION_FILE
from dfrot.stage_folder import RECORD


def read_stage_record(folder: Path) -> dict[str, Any]:
    """The folder's `stage.json`; empty where there is none, or none that can be read."""
    try:
        value = read_json(folder / RECORD)
    except DfqError:
        return {}
    return value if isinstance(value, dict) else {}


def lineage(folder: Path) -> dict[str, Any]:
    """{"rotation": {method, r1, r2, digest}, "quantization": {algorithm, calibration}}, as far as known."""
    found = read_stage_record(folder)
    request = found.get("request")
    if not isinstance(request, dict) or not isinstance(settings := request.get("settings"), dict):
        return {}
    if found.get("kind") == "rotate":
        rotation: dict[str, Any] = {key: found[key] for key in ("r1", "r2") if key in found}
        rotation["method"] = settings.get("method")
        file = folder / ROTATION_FILE
        if file.is_file():
            rotation["digest"] = digest_bytes(file.read_bytes())
        return {"rotation": rotation}
    if found.get("kind") == "tune":
        carried_on = found.get("lineage")
        return carried_on if isinstance(carried_on, dict) else {}
    if found.get("kind") == "quantize":
        before = found.get("lineage")
        quantization = {"algorithm": settings.get("algorithm"), "calibration": request.get("calibration")}
        carried: dict[str, Any] = before if isinstance(before, dict) else {}
        return {**carried, "quantization": quantization}
    return {}
