"""The wheels: what is inside, and that the command works from nothing but the wheel. Run with `make wheel-check`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build(folder: Path, **environment: str) -> Path:
    command = [*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    command += ["--config-settings", f"build-dir={folder / 'build'}"]  # the checkout's own build folder stays as it is
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pure"), DFQ_NO_NATIVE="1")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def dfq(wheel: Path, folder: Path, *arguments: str, **environment: str) -> Any:
    """JSON output of the command, run from the installed wheel and the environment's dependencies only."""
    target = folder / "site"
    if not target.exists():
        install = [*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
        subprocess.run(install, check=True, capture_output=True)
    # -S: without the .pth files, which would let the editable install of this environment win
    paths = [str(target), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    code = f"import sys; sys.path += {paths}; from dfrot_cli.main import main; main({list(arguments)})"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("kind", ["native", "pure"])
def test_contents(kind: str, request: pytest.FixtureRequest) -> None:
    found = names(request.getfixturevalue(kind))
    tops = {name.split("/")[0] for name in found}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dfrot", "dfrot_cli", "dfrot_kernels"}
    for name in ("dfrot/py.typed", "dfrot/__init__.py", "dfrot_cli/main.py", "dfrot_cli/commands/rotate.py"):
        assert name in found
    reference = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md")
    assert {f"dfrot/reference/{name}" for name in reference} <= found
    seeing = ("vision.json", "vision.safetensors", "delta.safetensors", "chat_template.jinja", "MODEL_CARD.md")
    assert {f"dfrot/reference/vlm/{name}" for name in seeing} <= found
    assert any(name.endswith("licenses/LICENSE") for name in found)
    assert not [name for name in found if name.endswith((".cpp", ".h", ".inc", ".pyc", "conftest.py"))]


def test_the_native_wheel_carries_the_library(native: Path) -> None:
    assert "dfrot_kernels/libdfq_cpu.so" in names(native)
    assert not native.name.endswith("none-any.whl")


def test_the_pure_wheel_needs_no_compiler(pure: Path) -> None:
    assert pure.name.endswith("py3-none-any.whl")
    assert not [name for name in names(pure) if name.endswith(".so")]


def test_the_native_wheel_works_alone(native: Path, tmp_path: Path) -> None:
    report = dfq(native, tmp_path, "doctor", "--json")
    served = {row["op"]: row["implementation"] for row in report["operators"]}
    assert served["w4a4_mm"].startswith("native")
    reference = next(row for row in dfq(native, tmp_path, "models", "--json") if row["alias"] == "reference")
    assert Path(reference["folder"]).is_relative_to(tmp_path / "site")


BENCH = (
    "bench",
    "kernels",
    "--shapes",
    "32x64",
    "--rows",
    "1,20",
    "--repeats",
    "1",
    "--context",
    "40",
    "--no-peers",
    "--cached",
)


@pytest.mark.parametrize("wanted", ["scalar", "avx2", "neon"])
def test_the_native_wheel_runs_without_avx512(native: Path, tmp_path: Path, wanted: str) -> None:
    """Every operator, through the gates of the bench, with the code that an older processor would get."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if wanted != "scalar" and (wanted == "avx2") != x86:
        pytest.skip(f"{wanted} is for other processors")
    report = dfq(native, tmp_path, "doctor", "--json", DFQ_CPU_ISA=wanted)
    assert {row["implementation"] for row in report["operators"]} == {f"native-{wanted}"}
    results = dfq(native, tmp_path, *BENCH, "--json", DFQ_CPU_ISA=wanted)["results"]
    assert {one["implementation"] for one in results} == {f"native-{wanted}"}
    assert all(one["passed"] for one in results)


def test_the_pure_wheel_computes(pure: Path, tmp_path: Path) -> None:
    results = dfq(pure, tmp_path, *BENCH, "--ops", "w4a16_mm,w4a8_mm,w4a4_mm,hadamard_quantize,kv_attention", "--json")
    assert {one["implementation"] for one in results["results"]} == {"reference"}
    assert all(one["passed"] for one in results["results"])


def test_the_pure_wheel_falls_back_and_says_so(pure: Path, tmp_path: Path) -> None:
    report = dfq(pure, tmp_path, "doctor", "--json")
    assert {row["implementation"] for row in report["operators"]} == {"reference"}
    assert any("not installed" in row["reason"] for row in report["operators"])
