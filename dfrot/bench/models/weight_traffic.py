"""How many bytes of weights a model reads to decode one token, and how fast this machine reads: decoding one sequence
cannot be faster than the one over the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from dfrot.bench.clock import race
from dfrot.bench.kernels.roofline import cache_bytes, fastest_read_probe, ring_bytes
from dfrot.quant.modules.linear import QuantLinear


def weight_bytes_per_token(model: Any) -> int:
    """Bytes of every weight that one token is multiplied by, the head's included, in the layout that the kernels read.
    Of an embedding a token reads one row, which is not counted. Experts are counted as if a token read all of them."""
    embedding = model.get_input_embeddings()
    parts = (model.get_decoder(), model.get_output_embeddings())
    modules = [module for part in parts for module in part.modules() if module is not embedding]
    return sum(t.numel() * t.element_size() for module in modules for t in _weights(module))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of one module, those of its children left out; tables of RoPE are none."""
    stored = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    yield from (tensor for name, tensor in stored if name.startswith(("weight", "bias")))
    if isinstance(module, QuantLinear) and (prepared := module.prepared) is not None:
        tensors = (prepared.tiles, prepared.scale, prepared.zero, prepared.sums)
        yield from (tensor for tensor in tensors if tensor is not None)


class ReadProbe:
    """Bytes per second that this process reads from memory: the fastest of `read_probes`, sampled again and again."""

    def __init__(self) -> None:
        self._probe = fastest_read_probe(ring_bytes(cache_bytes()), repeats=3)

    def sample(self) -> float:
        """One measurement, bytes per second."""
        call, size = self._probe
        return size / race({"read": [call]}, repeats=1)["read"].best
