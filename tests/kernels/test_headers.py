"""Every C++ header can be included first, with each instruction set that it is for: what clangd and a reader need."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "kernels" / "csrc"
ARM = "aarch64-linux-gnu-g++"
CROSS = (f"-DCMAKE_CXX_COMPILER={ARM}", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
COMPILERS = {"this": ("c++", ()), "aarch64": (ARM, CROSS)}
OTHERS = ("_avx2.h", "_avx512.h", "_neon.h", "_i8mm.h")  # headers that a compiler for other processors never sees


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def includers(build: Path, options: tuple[str, ...]) -> dict[Path, dict[str, list[str]]]:
    """Header -> instruction set ("plain": none) -> a command of a unit of that set that includes the header, without
    source and output."""
    subprocess.run(["cmake", "-S", CSRC.parent, "-B", build, *options], check=True, capture_output=True)
    headers: dict[Path, dict[str, list[str]]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        command = words[: words.index("-o")]
        isa = next((word.split("=")[1] for word in words if word.startswith("-DDFQ_ISA=")), "plain")
        rule = run([*command, "-MM", entry["file"]], build).stdout.replace("\\\n", " ")
        for name in rule.split()[2:]:
            headers.setdefault(Path(name), {})[isa] = command
    return headers


@pytest.mark.slow
@pytest.mark.parametrize("target", COMPILERS)
def test_every_header_can_be_included_first(target: str, tmp_path: Path) -> None:
    compiler, options = COMPILERS[target]
    if not shutil.which("cmake") or not shutil.which(compiler):
        pytest.skip(f"no cmake or no {compiler}")
    known = includers(tmp_path, options)
    probe, wrong = tmp_path / "probe.cpp", []
    for header in sorted(CSRC.rglob("*.h")):
        if header not in known:
            assert header.name.endswith(OTHERS), f"{header.relative_to(CSRC)} is included nowhere"
        probe.write_text(f'#include "{header}"\n')
        for isa, command in known.get(header, {}).items():
            ran = run([*command, "-fsyntax-only", "-Wno-unused-function", str(probe)], tmp_path)
            if ran.returncode or ran.stderr:
                wrong.append(f"{header.relative_to(CSRC)} for {isa}: {ran.stderr[:500]}")
    assert not wrong, "\n".join(wrong)
