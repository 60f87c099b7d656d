"""Running an exported checkpoint as a user without dfq would, to compare its logits with ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


def load_compressed_tensors(path: Path) -> Logits:
    """Load with transformers and compressed-tensors, in float32; FP4 in bfloat16, for the package (0.20) decodes it to
    that. Raises ResourceError without that package."""
    try:
        import compressed_tensors as _  # noqa: F401
    except ImportError:
        raise ResourceError("the package compressed-tensors is not installed: pip install 'dfq[interop]'") from None
    groups = read_json(path / "config.json")["quantization_config"]["config_groups"].values()
    weights = [group["weights"] for group in groups]
    asymmetric = any(not arguments["symmetric"] for arguments in weights)
    dtype = torch.bfloat16 if any(arguments["type"] == "float" for arguments in weights) else torch.float32
    return transformers_logits(load_foreign(path, dtype, dequantize=asymmetric))


def load_gptq(path: Path) -> Logits:
    """Load with the plain torch reader: dense float32 weights in a transformers model."""
    return transformers_logits(dense_model(read_json(path / "config.json"), dense_weights(path)))


def load_gguf(path: Path, context: int = 2048) -> Logits:
    """Load a GGUF file, or the folder that holds it, with llama.cpp on the CPU. context: tokens at most.

    Raises ResourceError without llama.cpp's Python package."""
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


@dataclass(frozen=True)
class ServingEngine:
    """What loads a target on this machine."""

    name: str
    """What reports call it."""
    load: Callable[[Path], Logits]
    """Exported folder -> its logits."""


ENGINES: dict[str, ServingEngine] = {  # by target
    "compressed-tensors": ServingEngine("transformers", load_compressed_tensors),
    "gguf": ServingEngine("llama.cpp", load_gguf),
    "gptq": ServingEngine("a plain torch reader", load_gptq),
}


def losses_and_logits(logits: Logits, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(mean negative log-likelihood float64 scalar, logits [S, vocab]) of each window of int64 [n, S]."""
    for tokens in windows:
        window_logits = logits(tokens)
        loss = torch.nn.functional.cross_entropy(window_logits[:-1].double(), tokens[1:])
        yield loss, window_logits


def greedy_tokens(logits: Logits, prompt: Tensor, count: int) -> list[int]:
    """`count` greedy tokens behind `prompt` int64 [S]. Every step recomputes the whole text: for checks only."""
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat([tokens, logits(tokens)[-1].argmax().view(1)])
    return [int(token) for token in tokens[len(prompt) :]]
