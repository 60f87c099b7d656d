"""Small random Llamas, written as other tools quantize them: hand-written packers, from the formats' descriptions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot import reference

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
Quantize = Callable[[Tensor], dict[str, Tensor]]


def dense_tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> dict[str, Tensor]:
    """The tensors of a random model, by name."""
    from dfrot.arch import describe

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in describe({**CONFIG, **changes}).tensors().items():
        values = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        tensors[name] = (values + (1.0 if "norm" in name else 0.0)).to(dtype)
    return tensors


def write_folder(folder: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None, **changes: Any) -> Path:
    """A Hugging Face folder with these tensors, the reference model's tokenizer, and a quantization_config."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    entry = {"quantization_config": quantization} if quantization is not None else {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes, **entry}))
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    for file in reference.path().glob("tokenizer*.json"):
        shutil.copyfile(file, folder / file.name)
    return folder


def quantized_tensors(tensors: dict[str, Tensor], quantize: Quantize) -> dict[str, Tensor]:
    """The tensors with every linear of a block in the parts that `quantize` makes of its weight."""
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "_proj" in name:
            module = name.removesuffix(".weight")
            parts |= {f"{module}.{part}": value for part, value in quantize(tensor).items()}
        else:
            parts[name] = tensor
    return parts


def fp8_blocks(weight: Tensor, block: tuple[int, int] = (128, 128)) -> dict[str, Tensor]:
    """e4m3 codes and a float32 scale per block; blocks at the edges are cut."""
    rows, cols = weight.shape
    grid = (-(-rows // block[0]), -(-cols // block[1]))
    scale, codes = torch.zeros(grid), torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for i in range(grid[0]):
        for j in range(grid[1]):
            where = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = weight[where].float().abs().max() / 448
            codes[where] = (weight[where].float() / scale[i, j]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers above, for tests (which are not a package)."""
    return SimpleNamespace(
        CONFIG=CONFIG,
        FP8=FP8,
        dense_tensors=dense_tensors,
        write_folder=write_folder,
        quantized_tensors=quantized_tensors,
        fp8_blocks=fp8_blocks,
    )


@pytest.fixture
def fp8_model(kit: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder in FP8, blocks of 128 x 128."""
    tensors = quantized_tensors(dense_tensors(), fp8_blocks)
    return write_folder(tmp_path / "fp8", tensors, FP8)
