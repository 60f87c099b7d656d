"""The C interface of libdfq_cpu, described once: names, types and order of arguments and fields, numbers of enums.

`python kernels/generate_abi.py` writes csrc/dfq_abi.h, csrc/dfq_abi_description.h and bindings.py from it. The library
returns the description that it was built with, and native.py refuses one that differs: two arguments that changed
places are then found when the library is loaded. Callers name every argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfrot_kernels.abi.kernels import KERNELS
from dfrot_kernels.abi.types import WORD, Enum, Field, Function, Struct, fields, float_bits
from dfrot_kernels.abi.whole_blocks import CALLS, MODEL_STRUCTS

VERSION = 4  # counts changes of meaning that names and types do not show

STATUS = Enum("dfq_status", {"DFQ_OK": 0, "DFQ_NO_MEMORY": 1, "DFQ_BAD_ARGUMENT": 2}, "What a call returns.")
DTYPE = Enum("dfq_dtype", {"DFQ_FLOAT32": 0, "DFQ_BFLOAT16": 1, "DFQ_FLOAT16": 2}, "Types of tensors (`dtype`).")
ISA = Enum(
    "dfq_instruction_set",
    {"DFQ_SCALAR": 0, "DFQ_AVX2": 1, "DFQ_AVX512": 2, "DFQ_NEON": 3, "DFQ_DOTPROD": 4, "DFQ_I8MM": 5},
    "Instruction sets, weakest first on each processor: scalar; x86-64: AVX2 (FMA, F16C), AVX-512 (VNNI, BF16, "
    "VBMI); 64-bit ARM: NEON, dotprod, i8mm (and bf16).",
)
KIND = Enum(
    "dfq_kind",
    {"DFQ_CODES8": 8, "DFQ_TILES": 16},
    "How a weight of a draft or head is stored, beside the dense types of enum dfq_dtype (float32, bfloat16): a byte a "
    "code with bfloat16 scales and zero point 128, or tiles of 4-bit codes (cpu/tile16/tile16_kernels.h).",
)
ENUMS = (STATUS, DTYPE, ISA, KIND)

OPENMP = Struct(
    "dfq_openmp",
    fields("const void* parallel, const void* num_threads, const void* thread_num"),
    "Functions of an OpenMP library in this process: its GOMP_parallel, omp_get_num_threads and omp_get_thread_num.",
)
STRUCTS = (OPENMP, *MODEL_STRUCTS)
FUNCTIONS = {function.name: function for function in KERNELS + CALLS}
_STRUCTS = {struct.name: struct for struct in STRUCTS}


def describe(
    version: int, enums: Sequence[Enum], structs: Sequence[Struct], functions: Sequence[Function]
) -> tuple[str, ...]:
    """One line for each part of an interface, as the library returns them."""
    lines = [f"version {version}"]
    for enum in enums:
        lines.append(f"enum {enum.name}: " + ", ".join(f"{name} = {number}" for name, number in enum.values.items()))
    for struct in structs:
        lines.append(f"struct {struct.name}: " + ", ".join(field.declaration() for field in struct.fields))
    for function in functions:
        lines.append(f"{function.name}: " + ", ".join(field.declaration() for field in function.arguments))
    return tuple(lines)


def description() -> tuple[str, ...]:
    """The lines that a library of this interface returns."""
    return describe(VERSION, ENUMS, STRUCTS, tuple(FUNCTIONS.values()))


def difference(library: Sequence[str], package: Sequence[str]) -> str | None:
    """The first line in which the descriptions of a library and of this package differ; None where they agree."""
    for line, needed in zip(library, package):
        if line != needed:
            return f"has `{line}`, this package needs `{needed}`"
    if len(library) != len(package):
        longer, verb = (library, "has") if len(library) > len(package) else (package, "lacks")
        return f"{verb} `{longer[min(len(library), len(package))]}`"
    return None


def words(struct: str, values: Mapping[str, int | float | Sequence[int]]) -> list[int]:
    """The words of C struct `struct` from its fields by name: integers, addresses, floats, words of nested structs.

    Raises:
        TypeError: a field is missing, is not one of the struct's, or has a value of another kind than its type.
    """
    needed = _STRUCTS[struct].fields
    unknown, missing = values.keys() - {f.name for f in needed}, {f.name for f in needed} - values.keys()
    if unknown or missing:
        raise TypeError(f"{struct}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    packed: list[int] = []
    for field in needed:
        packed += _field_words(struct, field, values[field.name])
    return packed


def word_count(struct: str) -> int:
    """The size of C struct `struct` in words."""
    return sum(word_count(field.nested) if field.nested else 1 for field in _STRUCTS[struct].fields)


def _field_words(struct: str, field: Field, value: int | float | Sequence[int]) -> list[int]:
    if field.nested and isinstance(value, Sequence) and len(value) == word_count(field.nested):
        return list(value)
    if field.type == "double" and isinstance(value, float):
        return [float_bits(value)]
    if not field.nested and field.type != "double" and isinstance(value, int):
        return [value]
    raise TypeError(f"{struct}.{field.name}: {value!r} is no {field.type}")


__all__ = ["DTYPE", "ENUMS", "FUNCTIONS", "ISA", "KIND", "STATUS", "STRUCTS", "VERSION", "WORD"]
__all__ += ["description", "difference", "word_count", "words"]
