"""What the `quantization_config` of other tools means, in words. Fields of the entry may hold any type."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dfrot.checkpoint import TensorEntry
from dfrot.errors import InputError

WORD = 32  # bits of the integers that hold packed weights


@dataclass
class ForeignFormat:
    """A quantized checkpoint of another tool, described in words."""

    kind: str
    """Name of the format."""
    weights: str
    """Bits, grid and groups of the weights."""
    activations: str = "16 bits"
    """Bits and grid of the activations."""
    kv: str = "16 bits"
    """Bits and grid of the KV cache."""
    readers: tuple[str, ...] = ()
    """Programs that load it."""
    packed: dict[str, float] = field(default_factory=dict)
    """Last part of the name of tensors that hold codes -> weights per element of such a tensor."""
    notes: list[str] = field(default_factory=list)
    """What the user should know."""


def describe_foreign(entry: dict[str, Any], where: str) -> ForeignFormat:
    """Describe the entry of config.json `where`. Raises InputError when it contradicts its own format."""
    method = entry.get("quant_method")
    try:
        if method == "gptq":
            return _gptq(entry)
        if method == "awq":
            return _awq(entry)
        if method == "compressed-tensors":
            return _compressed_tensors(entry)
        if method in ("fp8", "fbgemm_fp8"):
            return _fp8(entry)
        if method == "bitsandbytes":
            return _bitsandbytes(entry)
        if method == "mxfp4":
            return ForeignFormat("MXFP4 experts", "4-bit float, g 32", readers=("transformers", "vLLM", "SGLang"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        message = f"{where}: quantization_config is not {method}'s ({error!r}); restore the file"
        raise InputError(message, file=where) from None
    name = str(method)[:40] if isinstance(method, str) else "unknown"
    return ForeignFormat(name, f"as {name} says", readers=("transformers, if it has this quantizer",))


def _bits(value: Any) -> int:
    bits = int(value)
    if not 1 <= bits <= 16:
        raise ValueError(f"{bits} bits")
    return bits


def _group(value: Any) -> str:
    return f"groups of {int(value)}" if int(value) > 0 else "one scale per output channel"


def _gptq(entry: dict[str, Any]) -> ForeignFormat:
    bits = _bits(entry["bits"])
    grid = "symmetric" if entry.get("sym", True) else "asymmetric"
    version = 2 if entry.get("checkpoint_format", entry.get("format")) == "gptq_v2" else 1
    description = ForeignFormat(f"GPTQ v{version}", f"{bits}-bit {grid}, {_group(entry.get('group_size', -1))}")
    description.readers = ("vLLM", "SGLang", "GPTQModel", "transformers with gptqmodel")
    description.packed = {"qweight": WORD / bits}
    if entry.get("desc_act"):
        description.notes.append("columns are in activation order (desc_act)")
    if "rotation" in entry:
        description.notes.append("expects online rotations: only GPTQModel's torch and triton back-ends apply them")
    return description


def _awq(entry: dict[str, Any]) -> ForeignFormat:
    bits = _bits(entry.get("bits", entry.get("w_bit", 4)))
    grid = "asymmetric" if entry.get("zero_point", True) else "symmetric"
    group = _group(entry.get("group_size", entry.get("q_group_size", -1)))
    version = str(entry.get("version", "gemm")).lower()[:20]
    description = ForeignFormat(f"AWQ ({version})", f"{bits}-bit {grid}, {group}", packed={"qweight": WORD / bits})
    description.readers = ("vLLM", "SGLang", "transformers with gptqmodel")
    return description


def _fp8(entry: dict[str, Any]) -> ForeignFormat:
    block = entry.get("weight_block_size")
    scope = f"blocks of {int(block[0])} x {int(block[1])}" if block is not None else "one scale per tensor or channel"
    dynamic = entry.get("activation_scheme", "dynamic") == "dynamic"
    return ForeignFormat(
        "FP8 (e4m3)",
        f"8-bit float, {scope}",
        "8-bit float, " + ("dynamic" if dynamic else "static"),
        readers=("vLLM", "SGLang", "transformers"),
    )


def _bitsandbytes(entry: dict[str, Any]) -> ForeignFormat:
    if not entry.get("load_in_4bit"):
        return ForeignFormat("bitsandbytes (int8)", "8-bit, per channel", "8 bits", readers=("transformers", "vLLM"))
    kind = "nf4" if entry.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    return ForeignFormat(
        f"bitsandbytes ({kind})", "4-bit, blocks of the flattened weight", readers=("transformers", "vLLM")
    )


def _compressed_tensors(entry: dict[str, Any]) -> ForeignFormat:
    groups = list(entry["config_groups"].values())
    first = groups[0]
    weights = first["weights"]
    bits = _bits(weights["num_bits"])
    container = str(first.get("format") or entry.get("format"))[:40]
    description = ForeignFormat(
        f"compressed-tensors ({container})",
        _compressed_tensors_grid(weights),
        readers=("vLLM", "SGLang", "transformers"),
    )
    if (activations := first.get("input_activations")) is not None:
        description.activations = _compressed_tensors_grid(activations)
    if (kv := entry.get("kv_cache_scheme")) is not None:
        description.kv = _compressed_tensors_grid(kv)
    if len(groups) > 1:
        description.notes.append(f"{len(groups)} groups of schemes; the first is described")
    transforms = (entry.get("transform_config") or {}).get("config_groups") or {}
    if any(step.get("location") in ("input", "output") for group in transforms.values() for step in group["apply"]):
        description.readers = ("vLLM",)
        description.notes.append("has online transforms: transformers ignores them and computes nonsense")
    integers = weights.get("type", "int") == "int"
    if integers and container == "int-quantized" and bits < 8:
        description.notes.append(
            f"{bits}-bit integers in int8 containers: twice the size, and no INT4 kernel serves them"
        )
    element = WORD if integers else 8  # FP4 is packed into bytes
    description.packed = {"weight_packed": element / bits}
    return description


def _compressed_tensors_grid(args: dict[str, Any]) -> str:
    """The quantization arguments of weights, activations or KV cache in words."""
    kind = "" if args.get("type", "int") == "int" else f" {str(args['type'])[:10]}"
    grid = "symmetric" if args.get("symmetric", True) else "asymmetric"
    strategy = str(args.get("strategy"))[:20]
    scope = _group(args["group_size"]) if strategy in ("group", "tensor_group") else f"per {strategy}"
    return f"{_bits(args['num_bits'])}-bit{kind} {grid}, {scope}" + (", dynamic" if args.get("dynamic") else "")


def count_weights(entries: Iterable[TensorEntry], packed: dict[str, float]) -> tuple[int, int, int]:
    """(weights, quantized weights, bytes of quantized linears with scales and zeros), from headers alone.

    packed: as `ForeignFormat.packed`; a whole name goes before its last part."""
    total = quantized = nbytes = 0
    tensors = list(entries)
    per_element = {entry.name: packed.get(entry.name, packed.get(entry.name.rpartition(".")[2])) for entry in tensors}
    modules = {name.rpartition(".")[0] for name, weights in per_element.items() if weights is not None}
    for entry in tensors:
        module, _, kind = entry.name.rpartition(".")
        elements, ratio = math.prod(entry.shape), per_element[entry.name]
        if ratio is not None:
            weights = round(elements * ratio)
            total, quantized, nbytes = total + weights, quantized + weights, nbytes + entry.end - entry.start
        elif module in modules and kind != "bias":
            nbytes += entry.end - entry.start
        elif entry.dtype.is_floating_point:
            total += elements
    return total, quantized, nbytes
