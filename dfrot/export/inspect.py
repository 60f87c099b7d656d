"""`dfq inspect`: what a checkpoint is, who can load it, and what it can be exported to. Only headers are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dfrot.arch import describe, is_described, resolve
from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError, InputError
from dfrot.export.foreign_configs import count_weights, describe_foreign
from dfrot.export.gguf.facts import gguf_facts
from dfrot.export.source import fit_source, read_source
from dfrot.export.targets import TARGETS
from dfrot.inputs import DequantizedCheckpoint, open_model
from dfrot.inputs.gguf.folder import gguf_file
from dfrot.lineage import lineage, read_stage_record
from dfrot.quant.config import QUANT_METHOD, DfqConfig
from dfrot.quant.plan import check_stored, plan_linears
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.vision.llava_layout import CONFIG, VisionConfig, has_vision_part

DFQ_READERS = "transformers with dfrot imported, dfq"


def inspect(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint folder, a GGUF file, or the result of another dfq stage.

    Keys: path, kind, model_type, parameters, bytes, bits_per_weight, bits_per_quantized_weight, weights, activations,
    kv, rotation, seed, digest, loads_in, exports_to, notes (absent where unknown). Raises DfqError in one line for
    anything damaged, hostile or of no kind known."""
    if (file := gguf_file(path)) is not None or path.is_file():
        return gguf_facts(file or path)
    if not path.is_dir():
        raise InputError(f"{path}: is neither a folder nor a file; give a checkpoint folder or a .gguf file")
    if not (path / "config.json").is_file() and (stage := read_stage_record(path)):
        return {"path": str(path), "kind": f"result of dfq {stage.get('kind')}", "versions": stage.get("versions")}
    return _checkpoint_facts(Checkpoint.open(path))


def _checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of a Hugging Face folder of any kind."""
    config, where = checkpoint.config, str(checkpoint.path / "config.json")
    entry = config.get("quantization_config")
    facts: dict[str, Any] = {"path": str(checkpoint.path), "model_type": str(config.get("model_type"))[:60]}
    packed: dict[str, float] = {}
    view: DequantizedCheckpoint | None = None
    if entry is not None and not isinstance(entry, dict):
        raise InputError(f"{where}: quantization_config is not an object; restore the file")
    if entry is None or entry.get("quant_method") == QUANT_METHOD:
        dfq = DfqConfig.of(config, where)
        facts |= _dfq_facts(checkpoint, dfq, where)
        packed = _codes_per_byte(config, dfq)
    else:
        foreign = describe_foreign(entry, where)
        packed = foreign.packed
        view, read_by_dfq = _view(checkpoint.path)
        facts |= {
            "kind": foreign.kind,
            "weights": foreign.weights,
            "activations": foreign.activations,
            "kv": foreign.kv,
            "loads_in": list(foreign.readers),
            "read_by_dfq": read_by_dfq,
            "notes": foreign.notes + ([f"left out: {text}" for text in view.dropped] if view is not None else []),
        }
    total, quantized, nbytes = count_weights(checkpoint.entries.values(), packed)
    if view is not None:
        total = sum(math.prod(entry.shape) for entry in view.entries.values())
    size = sum(entry.end - entry.start for entry in checkpoint.entries.values())
    facts |= {"parameters": total, "bytes": size, "bits_per_weight": round(8 * size / max(total, 1), 4)}
    if quantized:
        facts["bits_per_quantized_weight"] = round(8 * nbytes / quantized, 4)
    return facts | _origin(checkpoint) | {"digest": checkpoint.digest()}


def _codes_per_byte(config: dict[str, Any], dfq: DfqConfig | None) -> dict[str, float]:
    """Weights in a byte of packed tensors, by the end of their name, or by the whole name of tables of their own."""
    if dfq is None or dfq.scheme is None or dfq.fake:
        return {}
    packed = {"weight_packed": 8 / dfq.scheme.w_bits}
    if is_described(config):
        arch = describe(config)
        for name, table in ((arch.spec.embed, dfq.embed), (arch.spec.head.name, dfq.head)):
            if table.quantized:
                share = arch.vocab_size / (arch.vocab_size + table.second_rows)  # a second row adds no weights
                packed[arch.written(f"{name}.weight_packed")] = 8 / table.bits * share
    return packed


def _view(path: Path) -> tuple[DequantizedCheckpoint | None, str]:
    """A quantized folder of another tool as the stages read it, and whether they do, in words."""
    try:
        view = open_model(path)
    except DfqError as error:
        return None, "no: " + str(error).removeprefix(f"{path / 'config.json'}: ")
    assert isinstance(view, DequantizedCheckpoint)
    return view, f"yes, dequantized to {str(view.dtype).removeprefix('torch.')}"


def _dfq_facts(checkpoint: Checkpoint, config: DfqConfig | None, where: str) -> dict[str, Any]:
    """A 16-bit checkpoint or one of dfq's: kind, scheme, and what it can be exported to."""
    scheme = config.scheme if config is not None else None
    if config is None:
        kind, loads = "16-bit checkpoint", "any engine that knows the architecture"
    elif scheme is None:
        kind, loads = "dfq, rotated, 16-bit weights", DFQ_READERS
    else:
        kind, loads = ("dfq, simulated" if config.fake else "dfq, packed"), DFQ_READERS
    facts: dict[str, Any] = {"kind": kind, "loads_in": [loads], "notes": []}
    if not is_described(checkpoint.config):
        facts["notes"].append("this architecture is not described in dfq: it cannot be rotated or quantized")
        return facts
    checkpoint, arch = resolve(checkpoint)
    facts["notes"] += checkpoint.resolved
    check_stored(checkpoint, arch, config, plan_linears(arch, config, where) if config is not None else {})
    if config is not None:
        online = {
            name.upper(): f"Hadamard, blocks of {spec['block']}" for name, spec in config.online.to_dict().items()
        }
        if online:
            facts["online"] = online
        facts["kept_in_16_bits"] = list(config.keep)
    if scheme is not None:
        facts |= {"scheme": scheme.name, "weights": _weights(scheme)}
        assert config is not None
        for name, table in (("embedding", config.embed), ("head", config.head)):
            if table.quantized:
                facts[name] = _grid(table.bits, table.group, table.symmetric)
                if table.second_rows:
                    facts[name] += f", second rows for {table.second_rows} tokens"
        facts |= {"activations": _activations(config, scheme), "kv": _kv_cache(scheme, config.shifts_keys)}
    if has_vision_part(checkpoint.path):
        vision = VisionConfig.read(checkpoint.path / CONFIG)
        facts["images"] = f"{vision.size} x {vision.size} pixels, {vision.per_image} tokens each"
    facts["exports_to"] = _export_storages(checkpoint.path)
    return facts


def _weights(scheme: QuantScheme) -> str:
    if scheme.w_bits == FULL:
        return "16 bits"
    if scheme.number_format != INTEGERS:
        return f"{scheme.number_format}, groups of {scheme.w_group}"
    return _grid(scheme.w_bits, scheme.w_group, scheme.w_sym)


def _grid(bits: int, group: int, symmetric: bool) -> str:
    scope = f"groups of {group}" if group else "one scale per output channel"
    return f"{bits}-bit {'symmetric' if symmetric else 'asymmetric'}, {scope}"


def _activations(config: DfqConfig, scheme: QuantScheme) -> str:
    if scheme.a_bits == FULL:
        return "16 bits"
    if scheme.number_format != INTEGERS:
        return f"{scheme.number_format}, groups of {scheme.w_group}, dynamic"
    grid = f"{scheme.a_bits}-bit {'symmetric' if scheme.a_sym else 'asymmetric'}, per token, dynamic"
    return f"{grid}; {config.other_inputs}" if config.a_bits else grid


def _kv_cache(scheme: QuantScheme, shifts_keys: bool) -> str:
    if scheme.kv_bits == FULL:
        return "16 bits"
    grid = f"{scheme.kv_bits}-bit {'symmetric' if scheme.kv_sym else 'asymmetric'}, per token and head, dynamic"
    return f"{grid}; keys minus their mean" if shifts_keys else grid


def _export_storages(model: Path) -> dict[str, str]:
    """How each target would hold a checkpoint, or its refusal."""

    def refusal(error: DfqError) -> str:
        return "no: " + str(error).removeprefix(f"{model}: ")

    try:
        read = read_source(model)
    except DfqError as error:
        return dict.fromkeys(TARGETS, refusal(error))
    storages = {}
    for name, target in TARGETS.items():
        try:
            source = fit_source(read, target)
            storages[name] = source.storage.name if source.storage is not None else "dense"
        except DfqError as error:
            storages[name] = refusal(error)
    return storages


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """Rotation, seed and quantization, where a dfq stage recorded them."""
    stage = read_stage_record(checkpoint.path)
    origin = stage.get("lineage") if stage.get("kind") == "export" else lineage(checkpoint.path)
    if not isinstance(origin, dict) or not origin:
        return {}
    facts: dict[str, Any] = {}
    if isinstance(rotation := origin.get("rotation"), dict):
        facts["rotation"] = {key: rotation.get(key) for key in ("method", "digest")}
        for key in ("r1", "r2"):
            if isinstance(matrix := rotation.get(key), dict):
                facts["rotation"][key] = f"{matrix.get('kind')}, {matrix.get('size')}, seed {matrix.get('seed')}"
    if isinstance(quantization := origin.get("quantization"), dict):
        facts["quantized_by"] = quantization
    return facts
