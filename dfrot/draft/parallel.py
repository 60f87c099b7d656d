"""Training on several processes that hold the same draft: each computes some samples of a step, gradients are summed.

What a step computes does not depend on how many processes share it, but for the order of summation: losses are sums
over slots divided by counts of all processes, and every sample's noise has a seed of its own.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfrot.errors import InputError, ResourceError

MINUTES = 30  # until processes that wait for another one give up


class Group:
    """One process alone; `Processes` is several."""

    rank, size = 0, 1

    def counts(self, own: Sequence[int]) -> list[int]:
        """Sums over all processes."""
        return list(own)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """Sum gradients in place, and `numbers` float [n] that go with them, which are returned."""
        return numbers

    def tell(self, data: bytes) -> bytes:
        """What process 0 says, to all."""
        return data

    def share(self, index: Tensor) -> Tensor:
        """The part of a step's samples that this process computes."""
        return index[self.rank :: self.size]


class Processes(Group):
    """Processes that found each other at an address (gloo, CPU tensors)."""

    def __init__(self, rank: int, size: int, address: str, port: int) -> None:
        if not 0 <= rank < size:
            raise InputError(f"process {rank} of {size}: ranks count from 0; check RANK and WORLD_SIZE")
        self.rank, self.size = rank, size
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
        for parameter in parameters:
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

    def tell(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        body = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0 and data:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(body, 0)
        return body.numpy().tobytes()

    def leave(self) -> None:
        """Part in order."""
        dist.destroy_process_group()
