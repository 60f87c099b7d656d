"""`dfq export`: a dfq checkpoint in, a checkpoint that another engine loads out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.export.fit import target_of
from dfrot.export.formats import WRITERS
from dfrot.export.serving.command import README, readme, serving_command
from dfrot.export.serving.planning import ServingPlan, record_of
from dfrot.export.source import ExportSource, open_source
from dfrot.files import file_sha256, write_bytes
from dfrot.lineage import lineage, source_record
from dfrot.progress import Progress, silent
from dfrot.quant.scheme import QuantScheme
from dfrot.stage_folder import open_stage, read_record, refuse_inputs

KIND = "export"


def export(
    model: Path,
    to: str,
    out: Path,
    scheme: QuantScheme | None = None,
    *,
    dtype: str | None = None,
    online_r4: bool = False,
    serving: ServingPlan | None = None,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish `model` in the format `to` as the folder `out`; returns its `stage.json`.

    Args:
        model: folder of a dfq checkpoint, or of a 16-bit one where the format holds those.
        to: name of the format, one of `targets.TARGETS`.
        out: folder of the result.
        scheme: None declares the source's; another one may drop or change activations and KV cache, never the weights.
        dtype: what gguf keeps 16-bit tensors in (bf16, f16, f32; None: as the source).
        online_r4: write R4 as an online transform (compressed-tensors).
        serving: what `plan_for` chose for an engine; its command and warnings are written into README.md.
        progress, resume, overwrite: as of every stage.

    Raises UnsupportedError in one line, naming what would work, for all that the format cannot hold.
    """
    target = target_of(to)
    if dtype is not None and not target.needs_described_names:
        raise UnsupportedError(
            f"`dtype={dtype}`: {to} keeps 16-bit tensors as they are; leave the option out", field="dtype"
        )
    refuse_inputs(out, model)
    source = open_source(model, target, scheme, online_r4)
    request = {
        "model": source.checkpoint.digest(),
        "to": to,
        "scheme": source.scheme.name,
        "dtype": dtype,
        "online_r4": online_r4,
    }
    if serving is not None:
        request["for"] = serving.served.engine
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            WRITERS[target.name].write(source, stage.folder, dtype, progress)
            record = {**_record(source, stage.folder), **_serving(serving, stage.folder)}
            stage.publish({**record, **source_record(model), "lineage": lineage(model)})
    return read_record(out, KIND)


def _record(source: ExportSource, folder: Path) -> dict[str, Any]:
    """What was written, for `stage.json`."""
    weight_files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".gguf")]
    files = {path.name: _file_entry(path) for path in weight_files}
    weights = [(plan.rows * plan.cols) for plan in source.plans.values()]
    return {
        "target": source.target.name,
        "scheme": source.scheme.name,
        "storage": source.storage.name if source.storage is not None else "dense",
        "engines": list(source.target.engines),
        "notes": source.notes,
        "scales": source.rounding.to_dict(),
        "quantized_linears": len(weights),
        "quantized_weights": sum(weights),
        "files": files,
        "bytes": sum(entry["bytes"] for entry in files.values()),
    }


def _serving(plan: ServingPlan | None, folder: Path) -> dict[str, Any]:
    """The entry `serving` of the record, and README.md."""
    if plan is None:
        return {}
    record = record_of(plan, serving_command(plan.served.engine, plan.served))
    write_bytes(folder / README, readme(plan.served, record).encode())
    return {"serving": record}


def _file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
