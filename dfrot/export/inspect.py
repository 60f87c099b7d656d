"""`dfq inspect`: what lies at a path, who can load it, and what it could become. Headers only, never all weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dfrot.arch import describe, is_described, with_described_names
from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError, InputError
from dfrot.export import foreign_configs as foreign
from dfrot.export.gguf import header as gguf_header
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.lineage import lineage, record
from dfrot.quant.config import QUANT_METHOD, DfqConfig
from dfrot.quant.plan import check_packed, plan_linears
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.vision.llava_layout import CONFIG, VisionConfig, has_vision_part

OURS = "transformers with dfrot imported, dfq"
QUANTIZED_GGUF = ("Q", "IQ", "TQ", "MXFP")


def inspect(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint folder, a GGUF file, or the result of another dfq stage.

    Keys: path, kind, model_type, parameters, bytes, bits_per_weight, bits_per_quantized_weight, weights, activations,
    kv, rotation, seed, digest, loads_in, exports_to, notes (absent where unknown). Raises DfqError in one line for
    anything damaged, hostile or of no kind known."""
    if path.is_file():
        return _gguf(path)
    if not path.is_dir():
        raise InputError(f"{path}: is neither a folder nor a file; give a checkpoint folder or a .gguf file")
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _gguf(files[0])
        if found := record(path):
            return {"path": str(path), "kind": f"result of dfq {found.get('kind')}", "versions": found.get("versions")}
    return _folder(Checkpoint.open(path))


def _folder(checkpoint: Checkpoint) -> dict[str, Any]:
    config, where = checkpoint.config, str(checkpoint.path / "config.json")
    entry = config.get("quantization_config")
    facts: dict[str, Any] = {"path": str(checkpoint.path), "model_type": str(config.get("model_type"))[:60]}
    packed: dict[str, float] = {}
    if entry is not None and not isinstance(entry, dict):
        raise InputError(f"{where}: quantization_config is not an object; restore the file")
    if entry is None or entry.get("quant_method") == QUANT_METHOD:
        ours = DfqConfig.of(config, where)
        facts |= _ours(checkpoint, ours, where)
        bits = ours.scheme.w_bits if ours is not None and ours.scheme is not None and not ours.fake else FULL
        packed = {"weight_packed": 8 / bits} if bits != FULL else {}
    else:
        found = foreign.describe_foreign(entry, where)
        packed = found.packed
        facts |= {
            "kind": found.kind,
            "weights": found.weights,
            "activations": found.activations,
            "kv": found.kv,
            "loads_in": list(found.readers),
            "notes": found.notes,
        }
    total, quantized, nbytes = foreign.count_weights(checkpoint.entries.values(), packed)
    size = sum(entry.end - entry.start for entry in checkpoint.entries.values())
    facts |= {"parameters": total, "bytes": size, "bits_per_weight": round(8 * size / max(total, 1), 4)}
    if quantized:
        facts["bits_per_quantized_weight"] = round(8 * nbytes / quantized, 4)
    return facts | _came_from(checkpoint) | {"digest": checkpoint.digest()}


def _ours(checkpoint: Checkpoint, config: DfqConfig | None, where: str) -> dict[str, Any]:
    """An ordinary checkpoint or one of dfq's."""
    scheme = config.scheme if config is not None else None
    if config is None:
        kind, loads = "16-bit checkpoint", "any engine that knows the architecture"
    elif scheme is None:
        kind, loads = "dfq, rotated, 16-bit weights", OURS
    else:
        kind, loads = ("dfq, simulated" if config.fake else "dfq, packed"), OURS
    facts: dict[str, Any] = {"kind": kind, "loads_in": [loads], "notes": []}
    if not is_described(checkpoint.config):
        facts["notes"].append("this architecture is not described in dfq: it cannot be rotated or quantized")
        return facts
    arch = describe(checkpoint.config, where)
    checkpoint = with_described_names(checkpoint, arch)
    if config is None:
        arch.check(checkpoint)
    else:
        plans = plan_linears(arch, config, where)
        check_packed(checkpoint, arch, plans) if any(p.packed for p in plans.values()) else arch.check(checkpoint)
        online = {
            name.upper(): f"Hadamard, blocks of {spec['block']}" for name, spec in config.online.to_dict().items()
        }
        if online:
            facts["online"] = online
        facts["kept_in_16_bits"] = list(config.keep)
    if scheme is not None:
        facts |= {"scheme": scheme.name, "weights": _grid(scheme), "activations": _acts(scheme), "kv": _kv(scheme)}
    if has_vision_part(checkpoint.path):
        seen = VisionConfig.read(checkpoint.path / CONFIG)
        facts["images"] = f"{seen.size} x {seen.size} pixels, {seen.per_image} tokens each"
    facts["exports_to"] = {name: _exports(checkpoint, name) for name in TARGETS}
    return facts


def _grid(scheme: QuantScheme) -> str:
    if scheme.w_bits == FULL:
        return "16 bits"
    place = f"groups of {scheme.w_group}" if scheme.w_group else "one scale per output channel"
    return f"{scheme.w_bits}-bit {'symmetric' if scheme.w_sym else 'asymmetric'}, {place}"


def _acts(scheme: QuantScheme) -> str:
    if scheme.a_bits == FULL:
        return "16 bits"
    return f"{scheme.a_bits}-bit {'symmetric' if scheme.a_sym else 'asymmetric'}, per token, dynamic"


def _kv(scheme: QuantScheme) -> str:
    if scheme.kv_bits == FULL:
        return "16 bits"
    return f"{scheme.kv_bits}-bit {'symmetric' if scheme.kv_sym else 'asymmetric'}, per token and head, dynamic"


def _exports(checkpoint: Checkpoint, name: str) -> str:
    """How a target would hold this checkpoint, or its refusal."""
    try:
        source = open_source(checkpoint.path, TARGETS[name])
    except DfqError as error:
        return "no: " + str(error).removeprefix(f"{checkpoint.path}: ")
    return source.storage.name if source.storage is not None else "dense"


def _came_from(checkpoint: Checkpoint) -> dict[str, Any]:
    """Rotation and seed, where a stage of ours recorded them."""
    known = record(checkpoint.path)
    found = known.get("lineage") if known.get("kind") == "export" else lineage(checkpoint.path)
    if not isinstance(found, dict) or not found:
        return {}
    facts: dict[str, Any] = {}
    if isinstance(rotation := found.get("rotation"), dict):
        facts["rotation"] = {key: rotation.get(key) for key in ("method", "digest")}
        for key in ("r1", "r2"):
            if isinstance(one := rotation.get(key), dict):
                facts["rotation"][key] = f"{one.get('kind')}, {one.get('size')}, seed {one.get('seed')}"
    if isinstance(made := found.get("quantization"), dict):
        facts["quantized_by"] = made
    return facts


def _gguf(file: Path) -> dict[str, Any]:
    header = gguf_header.read_header(file)
    counts: dict[str, int] = {}
    weights = quantized = quantized_bytes = nbytes = 0
    for tensor in header.tensors:
        number = math.prod(tensor.shape)
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
        weights, nbytes = weights + number, nbytes + tensor.nbytes
        if tensor.type.startswith(QUANTIZED_GGUF):
            quantized, quantized_bytes = quantized + number, quantized_bytes + tensor.nbytes
    meta = header.metadata
    facts: dict[str, Any] = {
        "path": str(file),
        "kind": "GGUF",
        "model_type": str(meta.get("general.architecture"))[:60],
        "parameters": weights,
        "bytes": file.stat().st_size,
        "bits_per_weight": round(8 * nbytes / max(weights, 1), 4),
        "weights": ", ".join(f"{number} x {kind}" for kind, number in sorted(counts.items())),
        "activations": "16 bits in the file; llama.cpp computes with 8-bit blocks",
        "kv": "chosen at run time",
        "tokenizer": f"{meta.get('tokenizer.ggml.model')} {meta.get('tokenizer.ggml.pre')}"[:80],
        "tokens": header.lengths.get("tokenizer.ggml.tokens"),
        "chat_template": "tokenizer.chat_template" in meta,
        "loads_in": ["llama.cpp and its descendants"],
    }
    if quantized:
        facts["bits_per_quantized_weight"] = round(8 * quantized_bytes / quantized, 4)
    if isinstance(scheme := meta.get("dfq.scheme"), str):
        facts["scheme"] = scheme[:40]
        facts["exported_from"] = str(meta.get("dfq.source_digest"))[:64]
    return facts
