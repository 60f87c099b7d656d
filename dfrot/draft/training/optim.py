"""AdamW with a warm-up and cosine schedule, whose state is named tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dfrot.draft.training.distributed import LocalGroup

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.02  # of all steps
FLOOR = 0.05  # learning rate at the end, as a share of the peak


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of step 0 .. steps - 1."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101), on matrices only. Gradients are clipped to a joint norm, over all
    processes that hold a part of them."""

    def __init__(self, module: nn.Module, weight_decay: float, clip: float, group: LocalGroup | None = None) -> None:
        """clip: largest norm of all gradients together. group: processes that train together; None for one alone."""
        self.named = dict(module.named_parameters())
        matrices = [p for p in self.named.values() if p.dim() >= 2]
        rest = [p for p in self.named.values() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.clip, self.group = clip, group or LocalGroup()
        self.inner = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=0.0, betas=BETAS, fused=False, foreach=True
        )

    def step(self, lr: float) -> float:
        """Apply the gradients, then clear them. Returns their norm before clipping."""
        norm = self.group.clip(list(self.named.values()), self.clip)
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
        state = {}
        for name, parameter in self.named.items():
            for key, value in self.inner.state.get(parameter, {}).items():
                state[f"{key}/{name}"] = value.detach()
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, parameter in self.named.items():
            own = {key.split("/", 1)[0]: value.clone() for key, value in state.items() if key.split("/", 1)[1] == name}
            if own:
                self.inner.state[parameter] = own
