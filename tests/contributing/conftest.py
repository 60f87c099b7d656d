"""CONTRIBUTING.md followed literally: files written, diffs applied and commands run in a copy of the tree."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN = re.compile(r"`([\w./]+)`:\s*\Z")  # at the end of the text before a block
# The copy is found before the installed package. The native library is the installed one until `make setup`.
PRELUDE = """
import sys
from importlib.machinery import PathFinder
sys.path[:0] = [{copy!r}, {cli!r}, {kernels!r}]
sys.meta_path.insert(0, PathFinder)
"""
PROGRAMS = {
    "pytest": "import pytest; sys.exit(pytest.main({arguments} + ['-p', 'no:cacheprovider']))",
    "dfq": "from dfrot_cli.main import main; main({arguments})",
    "python": "import runpy; runpy.run_path({arguments}[0], run_name='__main__')",
}


@dataclass(frozen=True)
class Step:
    """A fenced block. language: diff, sh, or that of a new file `target`."""

    language: str
    text: str
    target: str | None


def steps(heading: str) -> list[Step]:
    """The blocks of a section, in order. A block of code is the file named at the end of the line before it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = []
    for match in FENCED.finditer(section):
        named = WRITTEN.search(section[: match.start()].rstrip("\n"))
        found.append(Step(match[1], match[2], named[1] if named else None))
    return found


def apply(diff: str, root: Path) -> None:
    """Apply hunks by their text: the lines of a hunk that are not added must stand in the file exactly once."""
    for part in re.split(r"^--- a/\S+\n", diff, flags=re.MULTILINE)[1:]:
        header, _, body = part.partition("\n")
        path = root / header.removeprefix("+++ b/")
        text = path.read_text(encoding="utf-8")
        for hunk in body.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{path.name}: not there exactly once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def build(root: Path) -> str:
    """What `make setup` does to the library, beside the package in the copy; the environment stays as it is."""
    for command in (["cmake", "-S", "kernels", "-B", "build"], ["cmake", "--build", "build", "--parallel", "2"]):
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    (library,) = (root / "build").glob("libdfq_cpu.*")
    shutil.copy(library, root / "kernels" / "dfrot_kernels")
    return ran.stdout


def run(line: str, root: Path) -> str:
    """Run a command of the page on the copy; returns what it printed."""
    if line == "make setup":
        return build(root)
    program, *arguments = shlex.split(line)
    paths = {"copy": str(root), "cli": str(root / "cli"), "kernels": str(root / "kernels")}
    code = PRELUDE.format(**paths) + PROGRAMS[program].format(arguments=arguments)
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{line}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout + ran.stderr


def copy_file(source: str, target: str) -> None:
    """Weights are linked, not copied: nothing writes them."""
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


@pytest.fixture
def follow(tmp_path: Path) -> Callable[[str], list[str]]:
    """follow(heading): do what the section says in a copy of the tree; returns the output of its commands."""

    def work(heading: str) -> list[str]:
        for folder in ("dfrot", "cli", "kernels", "tests"):
            shutil.copytree(
                ROOT / folder, tmp_path / folder, copy_function=copy_file, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
        outputs = []
        for step in steps(heading):
            if step.language == "diff":
                apply(step.text, tmp_path)
            elif step.language == "sh":
                outputs += [run(line, tmp_path) for line in step.text.replace("\\\n", " ").splitlines() if line]
            else:
                assert step.target is not None, f"{heading}: a block of code whose file is not named before it"
                (tmp_path / step.target).parent.mkdir(exist_ok=True)
                (tmp_path / step.target).write_text(step.text, encoding="utf-8")
        for command in (["check"], ["format", "--check"]):
            ran = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=tmp_path, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stdout
        return outputs

    return work
