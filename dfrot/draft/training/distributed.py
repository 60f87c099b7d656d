"""Training on several processes: each computes some samples of a step, gradients are summed.

What a step computes does not depend on how many processes share it, but for the order of summation: losses are sums
over slots divided by counts of all processes, and every sample's noise has a seed of its own.

The processes of a `DistributedGroup` all hold the whole draft; with `shard` parameters, gradients, moments and best
weights are split between them (torch's FSDP2, arXiv 2304.11277), and a linear's weight is gathered where it multiplies.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfrot.errors import InputError, ResourceError

MINUTES = 30  # until processes that wait for another one give up


class LocalGroup:
    """One process alone; `DistributedGroup` is several."""

    rank, size = 0, 1
    sharded = False

    def counts(self, own: Sequence[int]) -> list[int]:
        """Sums over all processes."""
        return list(own)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """Sum gradients in place, and `numbers` float [n] that go with them, which are returned."""
        return numbers

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Scale gradients to a joint norm of at most `limit`. Returns the norm that they had."""
        return float(nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit))

    def tell(self, data: bytes) -> bytes:
        """What process 0 says, to all."""
        return data

    def share(self, index: Tensor) -> Tensor:
        """The part of a step's samples that this process computes."""
        return index[self.rank :: self.size]

    def shard(self, module: nn.Module) -> None:
        """Split the parameters of a draft between the processes, where they do that."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of which every process may hold a part. All processes must ask for the same ones in turn."""
        return tensor

    def spread(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        """What process 0 holds whole, of that shape and dtype, to all, split as `like` is."""
        assert tensor is not None
        return tensor


class DistributedGroup(LocalGroup):
    """Processes that found each other at an address (gloo, CPU tensors)."""

    def __init__(self, rank: int, size: int, address: str, port: int, shard: bool = False) -> None:
        if not 0 <= rank < size:
            raise InputError(f"process {rank} of {size}: ranks count from 0; check RANK and WORLD_SIZE")
        self.rank, self.size, self.sharded = rank, size, shard
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{address}:{port}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(minutes=MINUTES),
            )
        except (RuntimeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ResourceError(
                f"process {rank} of {size} did not find the others at {address}:{port}: {first}"
            ) from None

    def counts(self, own: Sequence[int]) -> list[int]:
        whole = torch.tensor(list(own), dtype=torch.int64)
        dist.all_reduce(whole)
        return [int(one) for one in whole]

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        gradients = []
        for parameter in () if self.sharded else parameters:  # sharded ones are summed where they are split
            if parameter.grad is None:  # unused by this process's samples, perhaps not by the others'
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([*(gradient.reshape(-1).float() for gradient in gradients), numbers.float()])
        dist.all_reduce(flat)
        begin = 0
        for gradient in gradients:
            gradient.copy_(flat[begin : begin + gradient.numel()].view_as(gradient))
            begin += gradient.numel()
        return flat[begin:]

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        if not self.sharded:
            return super().clip(parameters, limit)
        parts = [local(p.grad) for p in parameters if p.grad is not None]
        squares = torch.stack([part.double().pow(2).sum() for part in parts]).sum()
        dist.all_reduce(squares)
        norm = float(squares.sqrt())
        for part in parts:
            part.mul_(min(1.0, limit / (norm + 1e-6)))
        return norm

    def tell(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        body = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0 and data:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(body, 0)
        return body.numpy().tobytes()

    def shard(self, module: nn.Module) -> None:
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh("cpu", (self.size,))
        # a head of the draft's own is asked as often as there are chunks of slots, which differ between processes: it
        # stays with the root's parameters, which are together during a step
        linears = [m for name, m in module.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
        for part in (*linears, module):
            split: Any = fully_shard(part, mesh=mesh)
            split.set_gradient_divide_factor(1.0)
            split.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(module, "train_forward")

    def whole(self, tensor: Tensor) -> Tensor:
        full = getattr(tensor, "full_tensor", None)
        return tensor if full is None else full()

    def spread(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        full = torch.empty(tuple(shape), dtype=dtype) if tensor is None else tensor.contiguous()
        dist.broadcast(full, 0)
        if not full.dim() or not hasattr(like, "placements"):
            return full
        from torch.distributed.tensor import distribute_tensor

        split: Any = like
        return distribute_tensor(full, split.device_mesh, split.placements, src_data_rank=None)

    def leave(self) -> None:
        """Part in order."""
        dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()
