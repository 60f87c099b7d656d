"""Loading a checkpoint folder to run it: 16-bit, rotated, packed or simulated; local files only, never remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe, resolve
from dfrot.checkpoint import Checkpoint
from dfrot.compat.lazy_weights import lazy_state_dict
from dfrot.compat.logs import quiet_transformers
from dfrot.data.tokenizer import load_tokenizer
from dfrot.dtypes import DTYPES
from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.inputs import DequantizedCheckpoint, open_model
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.dense_linear import simulate
from dfrot.quant.plan import check_stored, plan_linears
from dfrot.runtime.block_runner import hf_config
from dfrot.runtime.described.build import build
from dfrot.runtime.described.config import refuses
from dfrot.runtime.install import base_model_of, use_capped_attention
from dfrot.runtime.transformers_reading import auto_class, key_mapping


def check_folder(path: Path) -> tuple[Checkpoint, DfqConfig | None]:
    """The checkpoint of a folder and its dfq configuration (None: an ordinary 16-bit checkpoint).

    Of the weights it reads a head that a tied configuration stores too, and undeclared biases. Raises DfqError, in one
    line, for what `load_model` could not load."""
    checkpoint = open_model(path)
    config_file = checkpoint.path / "config.json"
    config = DfqConfig.of(checkpoint.config, str(config_file))
    checkpoint, arch = resolve(checkpoint, to_run=True)
    plans = plan_linears(arch, config, str(config_file)) if config is not None else {}
    check_stored(checkpoint, arch, config, plans)
    return checkpoint, config


def _resolve_dtype(checkpoint: Checkpoint, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype that was asked for, or the one that config.json names."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32")
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{checkpoint.path}: `dtype` {dtype!r} is not supported; use one of {', '.join(DTYPES)}",
            field="dtype",
            file=checkpoint.path,
        )
    return DTYPES[dtype]


def first_line(error: Exception) -> str:
    """An exception of transformers as `kind: first line of its message`."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def require_loaded(info: dict[str, Any], path: Path, detail: str) -> None:
    """Raise InputError if transformers' loading info names a parameter that got no tensor of the files."""
    if unloaded := sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in info[key]):
        raise InputError(f"{path}: tensor {unloaded[0]} was not loaded{detail}", file=path, tensor=unloaded[0])


def _dequantized_source(loader: Any, checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """The class of a dequantized checkpoint's model, and the arguments with which it reads the weights from it."""
    from transformers import GenerationConfig

    config, stored = hf_config(checkpoint.stored_config, torch.float32), checkpoint.renamed(checkpoint.on_disk)
    with torch.device("meta"):
        model_class = type(loader.from_config(config))
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": None,
        "config": config,
        "state_dict": lazy_state_dict(stored.entries, stored.read),
    }
    if (checkpoint.path / "generation_config.json").is_file():
        source["generation_config"] = GenerationConfig.from_pretrained(checkpoint.path)
    return model_class, source


def load_model(path: Path | str, dtype: torch.dtype | str | None = None, fake: bool = False) -> Any:
    """The model of a checkpoint folder in evaluation mode, on the CPU.

    Args:
        path: the folder.
        dtype: of the model; None: the folder's.
        fake: run a packed checkpoint as its simulated twin (dequantized weights in float32, simulated activations),
            which computes the same numbers by another route.

    Raises DfqError, in one line, for a folder that cannot be loaded.
    """
    return _by_transformers(*check_folder(Path(path)), dtype, fake)


def load_for_decoding(path: Path | str) -> Any:
    """The model of a checkpoint folder for plain decoding, in evaluation mode, on the CPU: a described one where its
    configuration allows it (dfrot/runtime/described), which needs no transformers, else `load_model`'s.

    Raises DfqError, in one line, for a folder that cannot be loaded."""
    checkpoint, config = check_folder(Path(path))
    arch = describe(checkpoint.config)
    if refuses(arch) is None:
        return build(checkpoint, arch, config, _resolve_dtype(checkpoint, None))
    return _by_transformers(checkpoint, config)


def _by_transformers(
    checkpoint: Checkpoint, config: DfqConfig | None, dtype: torch.dtype | str | None = None, fake: bool = False
) -> Any:
    """`load_model` of a checked folder."""
    arch = describe(checkpoint.config)
    loader = auto_class(arch)
    try:
        with quiet_transformers():
            source: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.path}
            if isinstance(checkpoint, DequantizedCheckpoint):
                loader, source = _dequantized_source(loader, checkpoint)
            model, info = loader.from_pretrained(
                **source,
                dtype=_resolve_dtype(checkpoint, dtype),
                key_mapping=key_mapping(checkpoint),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except DfqError:
        raise
    except Exception as error:  # transformers raises many kinds here; all mean that the folder is unusable
        raise InputError(
            f"{checkpoint.path}: refused by transformers ({first_line(error)}); restore the folder",
            file=checkpoint.path,
        ) from error
    # the checks above read the index; transformers may have preferred another file of the folder
    require_loaded(info, checkpoint.path, "; two sets of weights in one folder?")
    use_capped_attention(base_model_of(model, arch), arch)
    if fake and config is not None and config.scheme is not None:
        simulate(model)
    return model.requires_grad_(False).eval()


def load(path: Path | str, dtype: torch.dtype | str | None = None, fake: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a checkpoint folder; see `load_model`."""
    model = load_model(path, dtype, fake)
    return model, load_tokenizer(Path(path))
