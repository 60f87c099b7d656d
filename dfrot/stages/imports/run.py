"""`dfq import`: a quantized model of another tool in, an ordinary 16-bit checkpoint out.

Tensors are dequantized one after the other, in row blocks, with a journal entry per unit of about UNIT_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.dtypes import SHORT_DTYPES
from dfrot.errors import UnsupportedError
from dfrot.files import allocated_bytes, file_sha256, require_free_space, write_json
from dfrot.inputs import DequantizedCheckpoint, open_model
from dfrot.inputs.lora import Adapter, merged, open_adapter
from dfrot.lineage import source_record
from dfrot.progress import Progress, silent
from dfrot.stage_folder import Stage, open_stage, read_record, refuse_inputs
from dfrot.stages.imports.settings import ImportSettings

KIND = "import"
UNIT_BYTES = 256 << 20
SPARE = 16 << 20  # bytes beside the weights: tokenizer, journal, record


def import_model(
    model: Path,
    out: Path,
    settings: ImportSettings | None = None,
    *,
    merge_adapter: Path | None = None,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the model of folder or file `model` as an ordinary checkpoint folder `out`; returns the record.

    merge_adapter: folder of a LoRA adapter of peft, which goes into the weights.

    Raises InputError or UnsupportedError in one line, before work starts, for a model or an adapter that cannot be
    read, and for a model that is dfq's own, or an ordinary checkpoint for which neither dtype nor adapter is given."""
    settings = settings or ImportSettings()
    refuse_inputs(out, Path(model), merge_adapter)
    adapter = None if merge_adapter is None else open_adapter(merge_adapter)
    source = _source(model, settings, adapter)
    request = {"model": source.digest(), "settings": asdict(settings)}
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            _write(stage, source, progress)
            merged_files = {} if adapter is None else {"adapter": adapter.files}
            stage.publish({**_record(source, stage.folder), **merged_files})
    return read_record(out, KIND)


def plan(model: Path, settings: ImportSettings, merge_adapter: Path | None = None) -> dict[str, Any]:
    """What `import_model` would do, as JSON, without doing it. Raises what it would raise before work starts."""
    source = _source(model, settings, None if merge_adapter is None else open_adapter(merge_adapter))
    size = sum(tensor.nbytes for tensor in _layout(source))
    return {**_facts(source), "tensors": len(source.entries), "bytes": size}


def _source(model: Path, settings: ImportSettings, adapter: Adapter | None) -> DequantizedCheckpoint:
    """The model in the dtype asked for, with the adapter. Raises UnsupportedError for one that needs no import."""
    source = open_model(model, None if settings.dtype is None else SHORT_DTYPES[settings.dtype])
    if source.config.get("quantization_config") is not None:
        raise UnsupportedError(
            f"{source.path}: is dfq's own; the other commands take it as it is", field="model", file=source.path
        )
    if adapter is not None:
        return merged(source, adapter)
    if not isinstance(source, DequantizedCheckpoint):
        raise UnsupportedError(
            f"{source.path}: is an ordinary checkpoint already; use it as it is, or set `dtype` or `merge_adapter`",
            field=("model", "dtype", "merge_adapter"),
            file=source.path,
        )
    return source


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _layout(source: Checkpoint) -> list[TensorPlan]:
    """The tensors in the order in which they are stored."""
    entries = [source.entries[name] for name in sorted(source.entries, key=_natural)]
    return [TensorPlan(entry.name, entry.dtype, entry.shape) for entry in entries]


def _units(layout: list[TensorPlan]) -> Iterator[list[TensorPlan]]:
    """Consecutive tensors of about UNIT_BYTES together."""
    unit: list[TensorPlan] = []
    for tensor in layout:
        unit.append(tensor)
        if sum(member.nbytes for member in unit) >= UNIT_BYTES:
            yield unit
            unit = []
    if unit:
        yield unit


def _write(stage: Stage, source: DequantizedCheckpoint, progress: Progress) -> None:
    """Write weights, those of an interrupted run taken over, config.json and the tokenizer's files."""
    layout = _layout(source)
    needed = sum(tensor.nbytes for tensor in layout) + SPARE
    require_free_space(stage.folder, needed - allocated_bytes(stage.folder))
    writer = SafetensorsWriter(stage.folder, layout)
    units = list(_units(layout))
    for number, unit in enumerate(units):
        progress(KIND, number, len(units))
        if not stage.done(unit[0].name):
            for tensor in unit:
                writer.copy(source, tensor.name)
            writer.sync()
            stage.mark(unit[0].name)
    progress(KIND, len(units), len(units))
    write_json(stage.folder / "config.json", _config(source))
    copy_tokenizer(source.path, stage.folder)


def _config(source: DequantizedCheckpoint) -> dict[str, Any]:
    """config.json with the dtype of the weights; it names no remote code."""
    config = {key: value for key, value in source.config.items() if key not in ("auto_map", "torch_dtype", "dtype")}
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = {key: value for key, value in text.items() if key not in ("torch_dtype", "dtype")}
    return {**config, "dtype": str(source.dtype).removeprefix("torch.")}


def _facts(source: DequantizedCheckpoint) -> dict[str, Any]:
    """What is read, and as what."""
    return {
        "format": source.format,
        "dtype": str(source.dtype).removeprefix("torch."),
        "left_out": list(source.dropped),
    }


def _record(source: DequantizedCheckpoint, folder: Path) -> dict[str, Any]:
    """The source and what was written, for `stage.json`."""
    files = sorted({entry.file for entry in source.on_disk.values()}, key=lambda file: file.name)
    written = sorted(folder.glob("*.safetensors"))
    return {
        "source": {**_facts(source), "files": {file.name: file.stat().st_size for file in files}},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in written},
        "weights": Checkpoint.open(folder).digest(),
        **source_record(files[0].parent if files else source.path),  # a GGUF file's folder is dfq's, not the hub's
    }
