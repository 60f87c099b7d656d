"""Running an exported checkpoint the way somebody without dfq would, to prove that it says what ours says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import ResourceError
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.gptq.reader import dense_weights
from dfrot.files import read_json
from dfrot.runtime.load_foreign import dense_model, load_foreign

Logits = Callable[[Tensor], Tensor]
"""tokens int64 [S] -> float32 logits [S, vocab]."""


def transformers_logits(model: Any) -> Logits:
    """The logits of a transformers model."""

    @torch.inference_mode()
    def logits(tokens: Tensor) -> Tensor:
        return model(input_ids=tokens[None], use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    return logits


def compressed_tensors(path: Path) -> Logits:
    """Through transformers and compressed-tensors, in float32. Raises ResourceError without that package."""
    try:
        import compressed_tensors as _  # noqa: F401
    except ImportError:
        raise ResourceError("the package compressed-tensors is not installed: pip install 'dfq[interop]'") from None
    groups = read_json(path / "config.json")["quantization_config"]["config_groups"].values()
    asymmetric = any(not group["weights"]["symmetric"] for group in groups)
    return transformers_logits(load_foreign(path, dequantize=asymmetric))


def gptq(path: Path) -> Logits:
    """Through the plain torch reader: dense float32 weights in a transformers model."""
    return transformers_logits(dense_model(read_json(path / "config.json"), dense_weights(path)))


def gguf(path: Path, context: int = 2048) -> Logits:
    """Through llama.cpp on the CPU. Raises ResourceError without its Python package."""
    try:
        import llama_cpp
    except ImportError:
        raise ResourceError("the package llama-cpp-python is not installed: pip install 'dfq[interop]'") from None
    model = llama_cpp.Llama(
        model_path=str(path / FILE_NAME if path.is_dir() else path),
        n_ctx=context,
        n_batch=512,
        logits_all=True,
        n_threads=torch.get_num_threads(),
        verbose=False,
    )

    def logits(tokens: Tensor) -> Tensor:
        model.reset()
        model.eval(tokens.tolist())
        return torch.from_numpy(np.array(model.scores[: len(tokens)], dtype=np.float32))

    return logits


# target -> what loads it here, and how it is called
ENGINES: dict[str, tuple[str, Callable[[Path], Logits]]] = {
    "compressed-tensors": ("transformers", compressed_tensors),
    "gguf": ("llama.cpp", gguf),
    "gptq": ("a plain torch reader", gptq),
}


def window_losses(logits: Logits, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(mean negative log-likelihood, logits [S, vocab]) of each window int64 [n, S]."""
    for tokens in windows:
        found = logits(tokens)
        loss = torch.nn.functional.cross_entropy(found[:-1].double(), tokens[1:])
        yield loss, found


def greedy_tokens(logits: Logits, prompt: Tensor, count: int) -> list[int]:
    """`count` greedy tokens behind `prompt`, computed from scratch each time: only for proofs."""
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat([tokens, logits(tokens)[-1].argmax().view(1)])
    return [int(token) for token in tokens[len(prompt) :]]
