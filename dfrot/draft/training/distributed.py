"""Training on several processes: each computes some samples of a step, gradients are summed.

What a step computes does not depend on how many processes share it, except for the order of summation: losses are sums
over slots divided by the counts of all processes, and every sample's noise has a seed of its own.

The processes of a `DistributedGroup` each hold the whole draft. With `shard`, parameters, gradients, moments and best
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

TIMEOUT_MINUTES = 30  # until a process that waits for another one gives up
NORM_EPSILON = 1e-6  # as in torch's clip_grad_norm_


class LocalGroup:
    """A single process, and the interface of several."""

    rank, size = 0, 1
    sharded = False

    def counts(self, own: Sequence[int]) -> list[int]:
        """Sums of each number over all processes."""
        return list(own)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """Sum gradients over all processes in place. numbers: float [n], summed with them and returned."""
        return numbers

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Scale gradients to a joint norm of at most `limit`. Returns the norm that they had."""
        return float(nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit))

    def broadcast(self, data: bytes) -> bytes:
        """The data of process 0; that of the others is ignored."""
        return data

    def share(self, index: Tensor) -> Tensor:
        """The part of a step's samples that this process computes."""
        return index[self.rank :: self.size]

    def shard(self, module: nn.Module) -> None:
        """Split the parameters of a draft between the processes, in a sharded group."""

    def gather(self, tensor: Tensor) -> Tensor:
        """A whole tensor of which every process may hold a part. All processes must call this for the same tensors in
        the same order."""
        return tensor

    def scatter(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        """A whole tensor of process 0 (None on the others), of this shape and dtype, split as `like` is."""
        assert tensor is not None
        return tensor


class DistributedGroup(LocalGroup):
    """Processes that train together (gloo, CPU tensors)."""

    def __init__(self, rank: int, size: int, address: str, port: int, shard: bool = False) -> None:
        """rank: of this process, from 0. size: number of processes. address, port: of process 0. shard: split the
        parameters between the processes. Raises ResourceError when the others are not reached."""
        if not 0 <= rank < size:
            raise InputError(f"process {rank} of {size}: ranks count from 0; check RANK and WORLD_SIZE")
        self.rank, self.size, self.sharded = rank, size, shard
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{address}:{port}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(minutes=TIMEOUT_MINUTES),
            )
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ResourceError(
                f"process {rank} of {size} did not find the others at {address}:{port}: {reason}"
            ) from None

    def counts(self, own: Sequence[int]) -> list[int]:
        """See LocalGroup."""
        sums = torch.tensor(list(own), dtype=torch.int64)
        dist.all_reduce(sums)
        return [int(count) for count in sums]

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """See LocalGroup."""
        gradients = []
        for parameter in () if self.sharded else parameters:  # FSDP sums the gradients of sharded ones
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
        """See LocalGroup."""
        if not self.sharded:
            return super().clip(parameters, limit)
        parts = [local_part(p.grad) for p in parameters if p.grad is not None]
        squares = torch.stack([part.double().pow(2).sum() for part in parts]).sum()
        dist.all_reduce(squares)
        norm = float(squares.sqrt())
        for part in parts:
            part.mul_(min(1.0, limit / (norm + NORM_EPSILON)))
        return norm

    def broadcast(self, data: bytes) -> bytes:
        """See LocalGroup."""
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        body = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0 and data:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(body, 0)
        return body.numpy().tobytes()

    def shard(self, module: nn.Module) -> None:
        """See LocalGroup."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh("cpu", (self.size,))
        # A head of the draft's own is called once per chunk of slots, and the number of chunks differs between
        # processes. So it stays with the root's parameters, which are gathered for a whole step.
        linears = [m for name, m in module.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
        for part in (*linears, module):
            sharded: Any = fully_shard(part, mesh=mesh)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(module, "train_forward")

    def gather(self, tensor: Tensor) -> Tensor:
        """See LocalGroup."""
        full_tensor = getattr(tensor, "full_tensor", None)
        return tensor if full_tensor is None else full_tensor()

    def scatter(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        """See LocalGroup."""
        full = torch.empty(tuple(shape), dtype=dtype) if tensor is None else tensor.contiguous()
        dist.broadcast(full, 0)
        if not full.dim() or not hasattr(like, "placements"):
            return full
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = like
        return distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)

    def leave(self) -> None:
        """End the group in an orderly way."""
        dist.destroy_process_group()


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
