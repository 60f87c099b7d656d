"""What the launching functions share: tuning, sizes, the number of parallel splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

# Scales, codes and the epilogues of integer sums round as the torch reference does: no contraction to fused
# multiply-adds in the kernels that are launched with this.
EXACT = {"enable_fp_fusion": False}


def tuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """`triton.autotune` over `configs`; under the interpreter, which has no clock worth asking, the first one."""

    def wrap(kernel: Any) -> Any:
        real = isinstance(kernel, triton.JITFunction)
        return triton.autotune(configs=configs if real else configs[:1], key=key)(kernel)

    return wrap


def config(num_warps: int = 4, num_stages: int = 3, **blocks: int) -> triton.Config:
    """A configuration for `tuned`; blocks: the kernel's constants by name."""
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def power2(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, or None."""
    return None if tensor is None else tensor.contiguous()


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; of anything else (the interpreter), enough to exercise splitting."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use; as on an H100 where there is no device (the interpreter)."""
    if device.type != "cuda":
        return 227 << 10
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def splits(programs: int, units: int, device: torch.device, largest: int = 32) -> int:
    """Into how many parts `units` of work are cut so that `programs` x parts keep the device busy: a power of two.

    It depends on shapes and device alone, so that results are the same in every run.
    """
    parts = 1
    while parts < largest and programs * parts < 4 * processors(device) and parts * 2 <= units:
        parts *= 2
    return parts
