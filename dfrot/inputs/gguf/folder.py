"""The folder that stands for a GGUF file: its config.json and tokenizer as files, and a link to it.

Tokenizers are loaded, copied and compared as files in a folder, so those of a GGUF file are written once, beside the
hub cache, under a name made from the file's path, size and time and from the code that wrote them. Weights stay in the
file.
"""

from __future__ import annotations

from pathlib import Path

from dfrot.errors import InputError
from dfrot.files import digest_bytes, make_cache_folder, write_json
from dfrot.inputs.gguf.model import first_part, read_model

SUFFIX = ".gguf"
LINK = "model.gguf"
"""The link in the folder."""
PROJECTOR = "mmproj"  # how names of files with a vision part begin


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` stands for: itself, that of a folder of `gguf_folder`, or the only model in a folder
    without other weights; else None.

    Raises InputError for a folder with several."""
    if path.is_file():
        return first_part(path) if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    if path.absolute().parent.parent == _cache():
        return (path / LINK).readlink()
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() == SUFFIX]
    files = [file for file in found if not file.name.startswith(PROJECTOR)]
    models = sorted({first_part(file) for file in files})
    if len(models) > 1:
        names = ", ".join(file.name for file in models[:4]) + (", ..." if len(models) > 4 else "")
        raise InputError(f"{path}: holds several models ({names}); give one of these files", file=path)
    return models[0] if models else None


def gguf_folder(file: Path) -> Path:
    """The folder that stands for a GGUF file, written if it does not exist.

    Raises InputError and UnsupportedError for a file that cannot be read, ResourceError where the folder cannot be
    written."""
    file = file.absolute()
    folder = _cache() / _key(file) / file.stem
    if folder.is_dir():
        return folder
    model = read_model(file)

    def fill(temporary: Path) -> None:
        write_json(temporary / "config.json", model.config)
        for name, content in model.tokenizer.items():
            (temporary / name).write_text(content, encoding="utf-8", newline="")
        (temporary / LINK).symlink_to(file)

    return make_cache_folder(folder, fill, f"the tokenizer of {file.name} cannot be written")


def _cache() -> Path:
    """Where the folders are written."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).absolute() / "dfq" / "gguf"


def _key(file: Path) -> str:
    """Changes when the file or the code that reads it does. Raises InputError for a file that is not there."""
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}); check the file", file=file) from None
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return digest_bytes(str(file).encode(), str((stat.st_size, stat.st_mtime_ns)).encode(), *code)[:16]
