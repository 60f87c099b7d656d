"""Rules of the kernels: they know tensors and never models, and one instruction set's code is never another's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
CPU = KERNELS / "csrc" / "cpu"
SOURCES = sorted(path for suffix in ("*.py", "*.h", "*.cpp") for path in KERNELS.rglob(suffix))
# what lists the families of an instruction set, and what describes the C interface
AGGREGATES = {"csrc/cpu/common/kernels.h", "csrc/cpu/common/instruction_set.cpp"}


def name(path: Path) -> str:
    return path.relative_to(KERNELS).as_posix()


def test_no_kernel_names_a_file_of_the_library() -> None:
    """dfrot builds on the kernels, not the other way round: no path into it, not even in a comment."""
    named = {name(path) for path in SOURCES if re.search(r"\bdfrot/", path.read_text())}
    assert not named


def test_only_whole_blocks_knows_whole_blocks() -> None:
    for path in SOURCES:
        if "whole_blocks" in name(path) or name(path) in AGGREGATES | {"dfrot_kernels/abi/__init__.py"}:
            continue
        lines = [line for line in path.read_text().splitlines() if re.match(r"\s*(#include|from|import)\b", line)]
        assert not [line for line in lines if "whole_blocks" in line], name(path)


@pytest.mark.parametrize("path", [path for path in SOURCES if CPU in path.parents], ids=name)
def test_no_code_has_a_name_that_two_instruction_sets_share(path: Path) -> None:
    """The linker keeps one copy of an inline function or template: it must lie in a namespace of its own."""
    text = path.read_text()
    if path.suffix == ".h" and re.search(r"^(inline|template|constexpr \w+ \w+\()", text, re.MULTILINE):
        assert re.search(r"^namespace \{", text, re.MULTILINE), "code in a header lies in an anonymous namespace"
    if "immintrin.h" in text or "arm_neon.h" in text:
        assert "namespace dfq::DFQ_ISA {" in text
