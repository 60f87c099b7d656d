"""Making the models of other engines from a 16-bit folder, by their own tools, each once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfrot.errors import ResourceError
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.run import export
from dfrot.race.driver_process import ContenderError

QUANTIZER = Path(__file__).parent / "drivers" / "quantize_gguf.py"
SECONDS = 1200  # that a tool may take
GROUPS = (64, 128, 32)  # of OpenVINO's weights: the first that divides the widths
REASON = 300


@dataclass(frozen=True)
class Workshop:
    """Where the models of one 16-bit folder are made."""

    source: Path
    """The 16-bit folder."""
    files: Path
    """The folder that keeps what is made of it."""
    environments: Path
    """The folder of the engines' environments."""
    threads: int
    """Of tools that take a number."""

    def python(self, engine: str) -> Path:
        """The interpreter of an engine's environment. Raises ContenderError where it is not set up."""
        python = self.environments / engine / "bin" / "python"
        if not python.is_file():
            raise ContenderError(f"{self.environments / engine}: not set up; run `make peers`")
        return python.absolute()


def _made(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made under another name and renamed, unless it is there."""
    if target.exists():
        return target
    partial = target.with_name(f"partial-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    except NotADirectoryError:
        partial.unlink()
    except OSError as error:
        raise ResourceError(f"{target.parent}: cannot be written ({error.strerror})", file=target.parent) from None
    try:
        make(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return target


def _run(command: Sequence[str | Path], log: Path) -> None:
    """Run an engine's tool, its output in `log`. Raises ContenderError with its last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        try:
            code = subprocess.run(
                [str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, timeout=SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise ContenderError(f"{Path(command[0]).name}: took more than {SECONDS} s; see {log}") from None
        except OSError as error:
            raise ContenderError(f"{command[0]}: {error.strerror}") from None
    if code:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ContenderError(f"its converter ended with code {code}: {(lines or ['no output'])[-1][:REASON]}")


def gguf(shop: Workshop, kind: str) -> Path:
    """A GGUF file: written in 16 bits by dfq, quantized by llama.cpp."""
    python = shop.python("llama.cpp")

    def make(out: Path) -> None:
        wide = shop.files / "gguf-16"
        export(shop.source, "gguf", wide, overwrite=True)
        _run([python, QUANTIZER, wide / FILE_NAME, out, kind, str(shop.threads)], shop.files / f"{kind}.log")

    return _made(shop.files / f"{kind}.gguf", make)


def exported(shop: Workshop, packed: Path, digest: str) -> Path:
    """A packed checkpoint as a compressed-tensors folder, for vLLM. digest: of the checkpoint. Raises DfqError for one
    that the format cannot hold."""

    def make(out: Path) -> None:
        export(packed, "compressed-tensors", out, overwrite=True)

    return _made(shop.files / f"exported-{digest[:16]}", make)


def openvino_folder(shop: Workshop) -> Path:
    """A folder of optimum-intel: symmetric 4-bit weights in groups of 64, embedding and head in 8 bits."""
    python = shop.python("openvino")

    def make(out: Path) -> None:
        options = "--task text-generation-with-past --weight-format int4 --sym --group-size 64 --ratio 1.0"
        tool = python.parent / "optimum-cli"
        command: list[str | Path] = [tool, "export", "openvino", "--model", shop.source, *options.split(), out]
        _run(command, shop.files / "openvino.log")

    return _made(shop.files / "openvino-int4-g64", make)


def onnxruntime_folder(shop: Workshop) -> Path:
    """A folder of onnxruntime-genai's builder: 4-bit weights in blocks of 32, int8 arithmetic."""
    python = shop.python("onnxruntime")

    def make(out: Path) -> None:
        builder: list[str | Path] = [
            python,
            "-m",
            "onnxruntime_genai.models.builder",
            "-m",
            "local",
            "-i",
            shop.source,
            "-o",
            out,
        ]
        options = "-p int4 -e cpu --extra_options int4_block_size=32 int4_accuracy_level=4"
        cache = shop.files / "onnxruntime-cache"
        _run([*builder, "-c", cache, *options.split()], shop.files / "onnxruntime.log")
        shutil.rmtree(cache, ignore_errors=True)

    return _made(shop.files / "onnxruntime-int4-g32", make)
