"""Where a checkpoint comes from, as its stages recorded it: rotation, seeds, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.errors import DfqError
from dfrot.files import digest_bytes, read_json
from dfrot.rotation.rotation import ROTATION_FILE
from dfrot.stage_folder import RECORD


def read_stage_record(folder: Path) -> dict[str, Any]:
    """The folder's `stage.json`; empty when it has none that can be read."""
    try:
        record = read_json(folder / RECORD)
    except DfqError:
        return {}
    return record if isinstance(record, dict) else {}


def lineage(folder: Path) -> dict[str, Any]:
    """{"rotation": {method, r1, r2, digest}, "quantization": {algorithm, calibration}}, as far as known."""
    record = read_stage_record(folder)
    request = record.get("request")
    if not isinstance(request, dict) or not isinstance(settings := request.get("settings"), dict):
        return {}
    inherited = record.get("lineage")
    if not isinstance(inherited, dict):
        inherited = {}
    match record.get("kind"):
        case "rotate":
            return {"rotation": _rotation(folder, record, settings)}
        case "quantize":
            quantization = {"algorithm": settings.get("algorithm"), "calibration": request.get("calibration")}
            return {**inherited, "quantization": quantization}
        case "tune":
            return inherited
    return {}


def _rotation(folder: Path, record: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    rotation: dict[str, Any] = {name: record[name] for name in ("r1", "r2") if name in record}
    rotation["method"] = settings.get("method")
    file = folder / ROTATION_FILE
    if file.is_file():
        rotation["digest"] = digest_bytes(file.read_bytes())
    return rotation
