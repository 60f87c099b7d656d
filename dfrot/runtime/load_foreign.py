"""Models of other formats through transformers itself: what an exported checkpoint is to someone without dfq."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.runtime.load import _quiet

_NOT_SIZES = ("quantization_config", "model_type", "torch_dtype", "dtype")


def load_foreign(path: Path, dtype: torch.dtype = torch.float32, dequantize: bool = False) -> Any:
    """The model that transformers makes of a folder, whatever quantizer it names; local files, no remote code.

    dequantize: ask compressed-tensors for dense weights while loading; its default path (0.20) cannot hold packed
    zero points. Activations are then left alone. Raises InputError when transformers refuses the folder or leaves a
    parameter without a tensor."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    try:
        # packed weights are unpacked by the first forward pass, with progress bars on stderr
        with _quiet(), contextlib.redirect_stderr(io.StringIO()):
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                **given,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            with torch.inference_mode():
                model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    except Exception as error:  # transformers and its quantizers raise many kinds
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: refused by transformers ({type(error).__name__}: {first})") from error
    if left := sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in info[key]):
        raise InputError(f"{path}: tensor {left[0]} was not loaded by transformers")
    return model.requires_grad_(False).eval()


def dense_model(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """A plain float32 model with the given weights. Raises InputError when names or shapes do not fit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key not in _NOT_SIZES}
    with _quiet():
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **values), dtype=torch.float32, trust_remote_code=False
        )
    try:
        missing, unexpected = made.load_state_dict({name: t.float() for name, t in state.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights do not fit the model ({str(error).splitlines()[0]})") from None
    tied = {"lm_head.weight"} if made.config.tie_word_embeddings else set()
    if left := sorted({*missing, *unexpected} - tied):
        raise InputError(f"tensor {left[0]} is missing or belongs to no module")
    return made.requires_grad_(False).eval()
