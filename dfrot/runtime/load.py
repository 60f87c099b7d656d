"""Loading a checkpoint folder to run it: 16-bit, rotated, packed or simulated; local files only, never remote code."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe, with_described_names
from dfrot.checkpoint import Checkpoint
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import check_packed, plan_linears
from dfrot.runtime.install import base_of, keep_caps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and warnings are not the library's to show."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_folder(path: Path) -> tuple[Checkpoint, DfqConfig | None]:
    """Refuse in one line what cannot be loaded, without reading a weight."""
    checkpoint = Checkpoint.open(path)
    where = str(checkpoint.path / "config.json")
    if (checkpoint.path / "adapter_config.json").exists():
        raise UnsupportedError(f"{checkpoint.path}: holds an adapter, which names its base model; merge the two first")
    if "transformers_weights" in checkpoint.config:
        raise UnsupportedError(f"{where}: transformers_weights names another weight file; remove the entry")
    config = DfqConfig.of(checkpoint.config, where)
    arch = describe(checkpoint.config, where)
    checkpoint = with_described_names(checkpoint, arch)
    plans = plan_linears(arch, config, where) if config is not None else {}
    if any(plan.packed for plan in plans.values()):
        check_packed(checkpoint, arch, plans)
    else:
        arch.check(checkpoint)
    return checkpoint, config


def _dtype(checkpoint: Checkpoint, dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{checkpoint.path}: dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_model(path: Path | str, dtype: torch.dtype | str | None = None, fake: bool = False) -> Any:
    """The model of a checkpoint folder in evaluation mode, on the CPU.

    dtype: None takes the folder's. fake: run a packed checkpoint as its simulated twin (dequantized weights in
    float32, simulated activations), the same numbers by another route. Raises DfqError in one line."""
    checkpoint, config = check_folder(Path(path))
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    arch = describe(checkpoint.config)
    sees = arch.wrapper is not None
    try:
        with _quiet():
            model, info = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(
                checkpoint.path,
                dtype=_dtype(checkpoint, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except DfqError:
        raise
    except Exception as error:  # transformers raises many kinds here; all mean that the folder is unusable
        first = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first}"
        raise InputError(f"{checkpoint.path}: refused by transformers ({reason}); restore the folder") from error
    # the checks above read the index; transformers may have preferred another file of the folder
    if left := sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in info[key]):
        raise InputError(f"{checkpoint.path}: tensor {left[0]} was not loaded; two sets of weights in one folder?")
    keep_caps(base_of(model, arch), arch)
    if fake and config is not None and config.scheme is not None:
        from dfrot.quant.linear import simulate

        simulate(model)
    return model.requires_grad_(False).eval()


def load(path: Path | str, dtype: torch.dtype | str | None = None, fake: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a checkpoint folder; see `load_model`."""
    model = load_model(path, dtype, fake)
    return model, load_tokenizer(Path(path))
