"""`dfq export`: one checkpoint of ours in, one that another engine loads out."""

from __future__ import annotations

import copy
import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import UnsupportedError
from dfrot.export.fit import target_of
from dfrot.export.source import ExportSource, open_source
from dfrot.files import require_free_space, write_json
from dfrot.lineage import lineage
from dfrot.quant.scheme import QuantScheme
from dfrot.stage_folder import Progress, open_stage, read_record, silent

KIND = "export"
CHUNK = 1 << 22
WRITERS = {"compressed-tensors": "dfrot.export.compressed_tensors", "gptq": "dfrot.export.gptq.writer"}


def export(
    model: Path,
    to: str,
    out: Path,
    scheme: QuantScheme | None = None,
    *,
    dtype: str | None = None,
    online_r4: bool = False,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish `model` in the format `to` as the folder `out`; returns its `stage.json`.

    scheme: None writes the source's; another one may drop or change activations and KV cache, never the weights.
    dtype: what gguf keeps 16-bit tensors in (bf16, f16, f32; None: as the source). online_r4: write R4 as an online
    transform (compressed-tensors). Raises UnsupportedError in one line, naming what would work, for all that the
    format cannot represent."""
    target = target_of(to)
    if dtype is not None and not target.described:
        raise UnsupportedError(f"--dtype {dtype}: {to} keeps 16-bit tensors as they are; leave the option out")
    source = open_source(model, target, scheme, online_r4)
    request = {
        "model": source.checkpoint.digest(),
        "to": to,
        "scheme": source.scheme.name,
        "dtype": dtype,
        "online_r4": online_r4,
    }
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            if target.described:
                from dfrot.export.gguf import writer as gguf

                gguf.write(source, stage.folder, dtype, progress)
            else:
                _folder(source, stage.folder, progress)
            stage.publish({**_evidence(source, stage.folder), "lineage": lineage(model)})
    return read_record(out, KIND)


def _folder(source: ExportSource, folder: Path, progress: Progress) -> None:
    """A Hugging Face folder with the tensors and the `quantization_config` of the target's writer."""
    writer = import_module(WRITERS[source.target.name])
    plan = writer.plan(source)
    require_free_space(folder.parent, sum(tensor.nbytes for tensor in plan))
    out = SafetensorsWriter(folder, plan)
    for number, (name, tensor) in enumerate(writer.tensors(source)):
        progress(KIND, number, len(plan))
        out.write(name, tensor)
    out.sync()
    config = copy.deepcopy(source.checkpoint.config)
    config["quantization_config"] = writer.config(source)
    write_json(folder / "config.json", config)
    copy_tokenizer(source.checkpoint.path, folder)
    progress(KIND, len(plan), len(plan))


def _evidence(source: ExportSource, folder: Path) -> dict[str, Any]:
    files = {path.name: _file(path) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".gguf")}
    linears = [(plan.rows * plan.cols) for plan in source.plans.values()]
    return {
        "target": source.target.name,
        "scheme": source.scheme.name,
        "storage": source.storage.name if source.storage is not None else "dense",
        "engines": list(source.target.engines),
        "notes": source.notes,
        "scales": source.rounding.to_dict(),
        "quantized_linears": len(linears),
        "quantized_weights": sum(linears),
        "files": files,
        "bytes": sum(one["bytes"] for one in files.values()),
    }


def _file(path: Path) -> dict[str, Any]:
    sha = hashlib.sha256()
    with path.open("rb") as handle:
        while data := handle.read(CHUNK):
            sha.update(data)
    return {"bytes": path.stat().st_size, "sha256": sha.hexdigest()}
