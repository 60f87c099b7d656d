"""The C interface is described once: what is generated from it, what the library says, and what a swap comes to."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dfrot_kernels import abi, bindings, native
from dfrot_kernels.abi.types import Function

KERNELS = Path(__file__).parents[2] / "kernels"
needs_library = pytest.mark.skipif(not native.active(), reason="no native library here")


def generator():
    spec = importlib.util.spec_from_file_location("generate_abi", KERNELS / "generate_abi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def swapped(function: Function, first: str, second: str) -> Function:
    """`function` with two of its arguments in each other's place."""
    names = [field.name for field in function.arguments]
    order = list(function.arguments)
    i, j = names.index(first), names.index(second)
    order[i], order[j] = order[j], order[i]
    return replace(function, arguments=tuple(order))


@pytest.mark.parametrize("path", generator().files())
def test_what_is_committed_is_what_is_generated(path):
    assert path.read_text() == generator().files()[path], "run python kernels/generate_abi.py"


@needs_library
def test_the_library_returns_the_description():
    assert tuple(native._library.dfq_abi_describe().decode().splitlines()) == abi.description()


@needs_library
def test_a_library_with_two_arguments_swapped_is_refused(monkeypatch):
    """Both are int64_t: no type would tell them apart."""
    functions = abi.FUNCTIONS | {"dfq_tiled_w4a16": swapped(abi.FUNCTIONS["dfq_tiled_w4a16"], "n", "k")}
    monkeypatch.setattr(abi, "FUNCTIONS", functions)
    refusal = native._open(native._find())
    assert isinstance(refusal, str)
    assert "has `dfq_tiled_w4a16: const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k," in refusal
    assert "needs `dfq_tiled_w4a16: const void* x, int64_t dtype, int64_t m, int64_t k, int64_t n," in refusal
    assert "install dfq again" in refusal


def test_a_difference_is_told():
    ours = abi.description()
    assert abi.difference(ours, ours) is None
    assert "lacks `dfq_draft_pass" in abi.difference(ours[:-1], ours)
    assert "has `dfq_draft_pass" in abi.difference(ours, ours[:-1])
    assert "needs `version" in abi.difference(("version 0", *ours[1:]), ours)


def test_two_fields_swapped_in_the_header_do_not_compile(tmp_path):
    if not shutil.which("c++"):
        pytest.skip("no compiler")
    header = (KERNELS / "csrc/dfq_abi.h").read_text()
    fields = "  int64_t kv_heads;\n  int64_t head_dim;\n"
    assert fields in header
    for text, good in ((header, True), (header.replace(fields, "  int64_t head_dim;\n  int64_t kv_heads;\n"), False)):
        (tmp_path / "swap.cpp").write_text(text)
        command = ["c++", "-std=c++17", "-fsyntax-only", "-x", "c++", str(tmp_path / "swap.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == good, done.stderr
        assert good or "not where the description has it" in done.stderr


@pytest.mark.parametrize("function", abi.FUNCTIONS.values(), ids=lambda function: function.name)
def test_every_argument_is_named_by_the_caller(function):
    binding = getattr(bindings, function.name.removeprefix("dfq_"))
    parameters = inspect.signature(binding).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert [parameter.name for parameter in parameters] == [field.name for field in function.arguments[:-1]]
    with pytest.raises(TypeError):
        binding(*range(len(parameters)))


def test_the_words_of_a_struct_are_its_fields_by_name():
    buffer = {"capacity": 3, "k": 1, "v": 2}
    assert abi.words("dfq_draft_buffer", buffer) == [1, 2, 3]
    with pytest.raises(TypeError, match=r"missing fields \['v'\]"):
        abi.words("dfq_draft_buffer", {"k": 1, "capacity": 3})
    with pytest.raises(TypeError, match=r"unknown fields \['w'\]"):
        abi.words("dfq_draft_buffer", {**buffer, "w": 1})
    with pytest.raises(TypeError, match=r"dfq_draft_buffer.capacity: 3.0 is no int64_t"):
        abi.words("dfq_draft_buffer", {**buffer, "capacity": 3.0})
    assert abi.word_count("dfq_block") == 5 + 7 * abi.word_count("dfq_linear")
