"""Building a described model from a checkpoint and reading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.files import read_json
from dfrot.inputs import DequantizedCheckpoint
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import FULL
from dfrot.runtime.dense_decoder import DenseDecoder
from dfrot.runtime.described.modules import DescribedCausalLM
from dfrot.runtime.install import finish_model, replace_linears

END_TOKENS = {"llama": 2, "mistral": 2}
"""Model types with an id in transformers' configuration class that ends a text."""


def build(checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig | None, dtype: torch.dtype) -> DescribedCausalLM:
    """The model of a checkpoint in evaluation mode, on the CPU.

    Args:
        checkpoint: under described names, checked.
        arch: its description, for which `refuses` has no reason.
        config: its dfq configuration; None: an ordinary 16-bit checkpoint.
        dtype: of everything whose dtype the checkpoint does not decide.

    Raises DfqError, in one line, for tensors that do not fit or are damaged."""
    model = DescribedCausalLM(arch, dtype, end_tokens(checkpoint))
    if config is not None:
        replace_linears(model, config, [str(file) for file in sorted({e.file for e in checkpoint.on_disk.values()})])
    _read(model, checkpoint)
    if config is not None:
        finish_model(model, config)
    if config is None or config.scheme is None or config.scheme.kv_bits == FULL:
        model.model.decode = DenseDecoder(model.model, arch).step
    return model.requires_grad_(False).eval()


def end_tokens(checkpoint: Checkpoint) -> Any:
    """The id or ids that end a text, or None: those of generation_config.json, and of config.json without one. Raises
    InputError for anything else."""
    file = checkpoint.path / "generation_config.json"
    defaults = read_json(file) if file.is_file() else checkpoint.stored_config
    if not isinstance(defaults, dict):
        raise InputError(f"{file}: is no JSON object, and so names no eos_token_id; restore the file", file=file)
    ids = defaults.get("eos_token_id", _unnamed_end(checkpoint, file))
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(type(token) is not int for token in listed):
        where = file if file.is_file() else checkpoint.path / "config.json"
        raise InputError(f"{where}: eos_token_id {ids!r} is neither an id nor a list of ids; restore the file")
    return ids


def _unnamed_end(checkpoint: Checkpoint, file: Path) -> int | None:
    """The id that transformers takes where no file names one: a default of the model type, where it is given the
    configuration as an object, which it is where weights are dequantized when they are read."""
    is_given = isinstance(checkpoint, DequantizedCheckpoint) and not file.is_file()
    return END_TOKENS.get(str(checkpoint.stored_config.get("model_type"))) if is_given else None


def _read(model: DescribedCausalLM, checkpoint: Checkpoint) -> None:
    """Replace every tensor of the model by the checkpoint's, in the dtype that the model gave it."""
    tied = model.all_tied_weights_keys
    for name, tensor in model.state_dict().items():
        if name not in tied:
            _place(model, name, checkpoint.read(name).to(tensor.dtype))
    for target, source in tied.items():
        _place(model, target, model.get_parameter(source))


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        setattr(module, leaf, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False))
