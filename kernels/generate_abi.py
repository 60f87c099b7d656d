"""Writes what follows from the description of the C interface (dfrot_kernels/abi): two C++ headers, the bindings.

    python kernels/generate_abi.py

The files are committed; tests/kernels/test_abi.py compares them with what this script would write.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from dfrot_kernels import abi
from dfrot_kernels.abi import types

FOLDER = Path(__file__).resolve().parent
WIDTH = 118
NOTE = "Written by generate_abi.py from dfrot_kernels/abi; edit the description, not this file."

HEADER = f"""\
// The C interface of libdfq_cpu.so. Plain pointers and sizes: no torch, no C++ types, one int result.
// {NOTE}
//
// A call takes one struct of arguments, each a word of 8 bytes, so that callers name what they pass. It returns 0, or
// DFQ_NO_MEMORY, or DFQ_BAD_ARGUMENT; outputs are then unspecified. Arrays are dense and row-major, need no alignment,
// and do not overlap. `threads` is the most threads the call may use; results are the same bits for every value of it.
// Codes are packed as a little-endian bit string per row (4 bit: low nibble first). Weights are w = scale * (u - zero)
// with unsigned codes u, activations x = scale * (q - zero) with signed codes q.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#define DFQ_ASSERT static_assert
#else
#define DFQ_ASSERT _Static_assert
#endif
#define DFQ_AT(tag, field, offset) DFQ_ASSERT(offsetof(struct tag, field) == offset, "not where the description has it")
#define DFQ_SIZE(tag, size) DFQ_ASSERT(sizeof(struct tag) == size, "not as large as the description has it")

#define DFQ_API __attribute__((visibility("default")))
"""

CONTROL = """\
// The description that this library was built with (dfq_abi_description.h): lines, the last one ended too.
DFQ_API const char* dfq_abi_describe(void);

DFQ_API int dfq_isa(void);               // the instruction set in use
DFQ_API int dfq_isa_supported(int isa);  // compiled in, and this processor can run it
DFQ_API int dfq_set_isa(int isa);        // for the whole process; not while another call runs

// Run on the threads of an OpenMP library instead of a pool of our own, or on that again (null). Not while another call
// runs.
struct dfq_openmp;
DFQ_API int dfq_use_openmp(const struct dfq_openmp* functions);
"""

FOOTER = """
#undef DFQ_ASSERT
#undef DFQ_AT
#undef DFQ_SIZE

#ifdef __cplusplus
}
#endif
"""

BINDINGS = f'''\
"""The functions of csrc/dfq_abi.h for tensors: every argument by its name, the number of threads is torch's.

{NOTE}
Tensors are passed by address and must be contiguous; None is a null pointer. Raises MemoryError without memory for
scratch space, RuntimeError for arguments outside a kernel's limits. native.py fills `functions` when it loads the
library.
"""
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NoReturn

import torch
from torch import Tensor

functions: dict[str, Callable[[bytes], int]] = {{}}  # symbol -> its function, on the words of its arguments
_threads = torch.get_num_threads


def _refuse(name: str, code: int) -> NoReturn:
    if code == {abi.STATUS.values["DFQ_NO_MEMORY"]}:
        raise MemoryError(f"{{name}}: no memory for scratch space")
    raise RuntimeError(f"{{name}}: arguments beyond the kernel's limits (code {{code}}); DFQ_IMPL=reference has none")
'''


def comment(text: str) -> list[str]:
    """C comment lines."""
    return textwrap.wrap(text, WIDTH, initial_indent="// ", subsequent_indent="// ", break_on_hyphens=False)


def struct_lines(struct: types.Struct) -> list[str]:
    """The C struct and the assertions on where its fields lie."""
    tag, offset, checks = struct.name, 0, []
    fields = [f"  {field.type} {field.name};{'  // or null' if field.nullable else ''}" for field in struct.fields]
    for field in struct.fields:
        checks.append(f"DFQ_AT({tag}, {field.name}, {offset * abi.WORD});".replace(" ", "~"))
        offset += abi.word_count(field.nested) if field.nested else 1
    checks.append(f"DFQ_SIZE({tag}, {offset * abi.WORD});".replace(" ", "~"))
    layout = [line.replace("~", " ") for line in textwrap.wrap(" ".join(checks), WIDTH, break_on_hyphens=False)]
    return [f"struct {tag} {{", *fields, "};", *layout]


def header() -> str:
    """csrc/dfq_abi.h."""
    lines = [HEADER]
    for enum in abi.ENUMS:
        values = ", ".join(f"{name} = {number}" for name, number in enum.values.items())
        lines += [*comment(enum.doc), f"enum {enum.name} {{ {values} }};", ""]
    lines.append(CONTROL)
    for struct in abi.STRUCTS:
        lines += [*comment(struct.doc), *struct_lines(struct), ""]
    for function in abi.FUNCTIONS.values():
        lines += [*comment(function.doc), *struct_lines(function.struct)]
        lines += [f"DFQ_API int {function.name}(const struct {function.struct.name}* args);", ""]
    return "\n".join(lines).rstrip() + "\n" + FOOTER


def description_header() -> str:
    """csrc/dfq_abi_description.h."""
    lines = ["// What dfq_abi_describe returns.", f"// {NOTE}", "#pragma once", "", "#define DFQ_ABI_DESCRIPTION \\"]
    parts = []
    for line in abi.description():
        pieces = textwrap.wrap(line, WIDTH - 10, drop_whitespace=False, break_long_words=False, break_on_hyphens=False)
        parts += [f'  "{piece}"' for piece in pieces[:-1]] + [f'  "{pieces[-1]}\\n"']
    return "\n".join(lines) + "\n" + " \\\n".join(parts) + "\n"


def annotation(field: types.Field) -> str:
    """The Python type of an argument."""
    if field.pointer:
        return "Tensor | None" if field.nullable else "Tensor"
    return "float" if field.type == "double" else "int"


def word(field: types.Field) -> str:
    """The Python expression of an argument's word."""
    if not field.pointer:
        return field.name
    address = f"{field.name}.data_ptr()"
    return f"0 if {field.name} is None else {address}" if field.nullable else address


def wrapped(items: Sequence[str], first: str, indent: str, last: str) -> list[str]:
    """`items`, separated by commas, behind `first` and before `last`; lines as full as they may be."""
    lines, line = [], first
    for index, item in enumerate(items):
        text = item + (last if index + 1 == len(items) else ",")
        space = "" if line.endswith("(") or line == indent else " "
        if len(line) + len(space) + len(text) > WIDTH:
            lines.append(line)
            line, space = indent, ""
        line += space + text
    return [*lines, line]


def binding(function: types.Function) -> list[str]:
    """The Python function of a C function."""
    arguments = function.arguments[:-1]  # without the number of threads
    name = function.name.removeprefix("dfq_")
    formats = "".join("d" if field.type == "double" else "q" for field in function.arguments)
    parameters = [f"{field.name}: {annotation(field)}" for field in arguments]
    return [
        f'_{name} = Struct("={formats}").pack',
        "",
        *wrapped(["*", *parameters], f"def {name}(", " " * (len(name) + 5), ") -> None:"),
        *textwrap.wrap(
            f'"""{function.name}: {function.doc}"""',
            WIDTH,
            break_on_hyphens=False,
            initial_indent=" " * 4,
            subsequent_indent=" " * 4,
        ),
        *wrapped(
            [*map(word, arguments), "_threads()"],
            f'    code = functions["{function.name}"](_{name}(',
            " " * 8,
            "))",
        ),
        "    if code:",
        f'        _refuse("{function.name}", code)',
    ]


def bindings() -> str:
    """dfrot_kernels/bindings.py."""
    text = BINDINGS
    for function in abi.FUNCTIONS.values():
        text += "\n\n" + "\n".join(binding(function)) + "\n"
    return text


def files() -> dict[Path, str]:
    """Path -> content of everything that is written."""
    return {
        FOLDER / "csrc/dfq_abi.h": header(),
        FOLDER / "csrc/dfq_abi_description.h": description_header(),
        FOLDER / "dfrot_kernels/bindings.py": bindings(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
