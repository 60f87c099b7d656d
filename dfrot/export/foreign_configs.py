"""What the `quantization_config` of other tools says, in the words of ours. Every field may be anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dfrot.checkpoint import TensorEntry
from dfrot.errors import InputError


@dataclass
class ForeignFormat:
    """kind: the format; weights, activations, kv: in words; readers: who loads it; packed: suffix of the tensor that
    holds integers -> how many weights one of its elements holds; notes."""

    kind: str
    weights: str
    activations: str = "16 bits"
    kv: str = "16 bits"
    readers: tuple[str, ...] = ()
    packed: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def describe_foreign(entry: dict[str, Any], where: str) -> ForeignFormat:
    """Read the entry. Raises InputError when it contradicts its own format."""
    method = entry.get("quant_method")
    try:
        if method == "gptq":
            return _gptq(entry)
        if method == "awq":
            return _awq(entry)
        if method == "compressed-tensors":
            return _compressed_tensors(entry)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{where}: quantization_config is not {method}'s ({error!r}); restore the file") from None
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
    found = ForeignFormat(f"GPTQ v{version}", f"{bits}-bit {grid}, {_group(entry.get('group_size', -1))}")
    found.readers = ("vLLM", "SGLang", "GPTQModel", "transformers with gptqmodel")
    found.packed = {"qweight": 32 / bits}
    if entry.get("desc_act"):
        found.notes.append("columns are in activation order (desc_act)")
    if "rotation" in entry:
        found.notes.append("expects online rotations: only GPTQModel's torch and triton back-ends apply them")
    return found


def _awq(entry: dict[str, Any]) -> ForeignFormat:
    bits = _bits(entry.get("bits", entry.get("w_bit", 4)))
    grid = "asymmetric" if entry.get("zero_point", True) else "symmetric"
    group = _group(entry.get("group_size", entry.get("q_group_size", -1)))
    version = str(entry.get("version", "gemm")).lower()[:20]
    found = ForeignFormat(f"AWQ ({version})", f"{bits}-bit {grid}, {group}", packed={"qweight": 32 / bits})
    found.readers = ("vLLM", "SGLang", "transformers with gptqmodel")
    return found


def _compressed_tensors(entry: dict[str, Any]) -> ForeignFormat:
    groups = list(entry["config_groups"].values())
    first = groups[0]
    weights = first["weights"]
    bits = _bits(weights["num_bits"])
    form = str(first.get("format") or entry.get("format"))[:40]
    found = ForeignFormat(f"compressed-tensors ({form})", _ct(weights), readers=("vLLM", "SGLang", "transformers"))
    if (acts := first.get("input_activations")) is not None:
        found.activations = _ct(acts)
    if (kv := entry.get("kv_cache_scheme")) is not None:
        found.kv = _ct(kv)
    if len(groups) > 1:
        found.notes.append(f"{len(groups)} groups of schemes; the first is described")
    online = (entry.get("transform_config") or {}).get("config_groups") or {}
    if any(one.get("location") in ("input", "output") for group in online.values() for one in group["apply"]):
        found.readers = ("vLLM",)
        found.notes.append("has online transforms: transformers ignores them and computes nonsense")
    integers = weights.get("type", "int") == "int"
    if integers and form == "int-quantized" and bits < 8:
        found.notes.append(f"{bits}-bit integers in int8 containers: twice the size, and no INT4 kernel serves them")
    found.packed = {"weight_packed": 32 / bits}
    return found


def _ct(scheme: dict[str, Any]) -> str:
    kind = "" if scheme.get("type", "int") == "int" else f" {str(scheme['type'])[:10]}"
    grid = "symmetric" if scheme.get("symmetric", True) else "asymmetric"
    strategy = str(scheme.get("strategy"))[:20]
    place = _group(scheme["group_size"]) if strategy == "group" else f"per {strategy}"
    return f"{_bits(scheme['num_bits'])}-bit{kind} {grid}, {place}" + (", dynamic" if scheme.get("dynamic") else "")


def count_weights(entries: Iterable[TensorEntry], packed: dict[str, float]) -> tuple[int, int, int]:
    """(weights in all, quantized weights, bytes of quantized linears with scales and zeros) from headers alone."""
    total = quantized = nbytes = 0
    found = list(entries)
    modules = {entry.name.rpartition(".")[0] for entry in found if entry.name.rpartition(".")[2] in packed}
    for entry in found:
        module, _, kind = entry.name.rpartition(".")
        elements = 1
        for n in entry.shape:
            elements *= n
        if kind in packed:
            weights = round(elements * packed[kind])
            total, quantized, nbytes = total + weights, quantized + weights, nbytes + entry.end - entry.start
        elif module in modules and kind != "bias":
            nbytes += entry.end - entry.start
        elif entry.dtype.is_floating_point:
            total += elements
    return total, quantized, nbytes
