"""Where a checkpoint comes from: the hub's commit, and what its stages recorded: rotation, seeds, calibration."""

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


def hub_source(folder: Path) -> dict[str, str]:
    """{"hub_id", "commit"} of a folder in the hub's cache (models--OWNER--NAME/snapshots/COMMIT); empty for others."""
    snapshots = folder.absolute().parent
    kind, _, hub_id = snapshots.parent.name.partition("--")
    if kind != "models" or snapshots.name != "snapshots" or not hub_id:
        return {}
    return {"hub_id": hub_id.replace("--", "/", 1), "commit": folder.name}


def source_record(folder: Path) -> dict[str, Any]:
    """What records say of the checkpoint that they were made from: {"hub": hub_source} where it lies in the hub's
    cache, or a stage recorded that of the checkpoint before; else empty."""
    source = hub_source(folder) or read_stage_record(folder).get("hub")
    return {"hub": source} if isinstance(source, dict) and source else {}


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
