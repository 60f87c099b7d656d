"""Loading checkpoints of other formats with transformers itself: what an exported folder is to a user without dfq."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.compat.logs import quiet_transformers
from dfrot.errors import InputError
from dfrot.runtime.load import first_line, require_loaded

_NO_SETTINGS = ("quantization_config", "model_type", "torch_dtype", "dtype")
"""Keys of config.json that do not describe the architecture."""


def load_foreign(path: Path, dtype: torch.dtype = torch.float32, dequantize: bool = False) -> Any:
    """The model that transformers makes of a folder, whatever quantizer it names; local files, no remote code.

    dequantize: ask compressed-tensors for dense weights while loading; its default path (0.20) cannot hold packed
    zero points. Activations are then not quantized. Raises InputError when transformers refuses the folder or leaves a
    parameter without a tensor."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    try:
        # packed weights are unpacked by the first forward pass, with progress bars on stderr
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                **options,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            with torch.inference_mode():
                model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    except Exception as error:  # transformers and its quantizers raise many kinds
        raise InputError(f"{path}: refused by transformers ({first_line(error)})", file=path) from error
    require_loaded(info, path, " by transformers")
    return model.requires_grad_(False).eval()


def dense_model(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """A plain float32 model with the weights `state`. Raises InputError when names or shapes do not fit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key not in _NO_SETTINGS}
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **values), dtype=torch.float32, trust_remote_code=False
        )
    weights = {name: tensor.float() for name, tensor in state.items()}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights do not fit the model ({str(error).splitlines()[0]})") from None
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if unmatched := sorted({*missing, *unexpected} - tied):
        raise InputError(f"tensor {unmatched[0]} is missing or belongs to no module", tensor=unmatched[0])
    return model.requires_grad_(False).eval()
