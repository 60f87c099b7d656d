"""A loaded 16-bit model in which R1 learns: what the linears behind R1 read is rotated, rounded and rotated back.

Nothing is fused: with n the output of a norm without its gain, R1 = R0 C, C from a skew-symmetric matrix (Cayley)
and s the signs of gains behind it (dfrot/rotation/align.py), these linears compute W g (Q(n R1 s) s R1^T). That is the
rotated model with activations in few bits, whose weights need no gradient and no product with R1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.arch import BoundArch
from dfrot.processor import fast_bfloat16
from dfrot.rotation.align import gain_signs
from dfrot.rotation.refinement.output_error import cayley, rounded
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer
from dfrot.runtime.trainable import halve_tables
from dfrot.runtime.trainable_attention import use_fast_attention


class TurnedModel:
    """A 16-bit model with 4-bit activations behind R1, which is what learns.

    model: the model itself, changed for good. parameters: `skew`, float32 [d, d], of which what lies above the diagonal
    counts."""

    def __init__(
        self, model: Any, arch: BoundArch, start: Tensor, means: Tensor | None, grid: TokenQuantizer, sinks: int
    ) -> None:
        """model: loaded in float32 from the source checkpoint. start: R0, float64 [d, d]. means: of norm outputs
        float64 [taps, d], which decide the signs; None: no gain has one. sinks: leading positions that stay exact."""
        self.model = model.requires_grad_(False)
        self.start, self.means = start, means
        self.parameters = nn.ParameterDict({"skew": nn.Parameter(torch.zeros(arch.hidden, arch.hidden))})
        self.inputs: list[_RotatedInput] = []
        dtype = torch.bfloat16 if fast_bfloat16() else torch.float32
        for layer in range(arch.n_layers):
            fed: dict[str, tuple[_RotatedInput, Tensor]] = {}
            for norm in arch.spec.rotated_norms:
                module = model.get_submodule(arch.full(layer, norm.name))
                self.inputs.append(_RotatedInput(grid, sinks))
                fed |= dict.fromkeys(norm.feeds, (self.inputs[-1], module.weight.data + norm.offset))
                module.weight.data = torch.full_like(module.weight.data, 1.0 - norm.offset)
            for linear in arch.spec.linears:
                source, gain = fed.get(linear.name, (None, None))
                name = arch.full(layer, linear.name)
                model.set_submodule(name, _FrozenLinear(model.get_submodule(name), gain, source, dtype))
        if fast_bfloat16():
            halve_tables(model)
        use_fast_attention(model)
        model.base_model.register_forward_pre_hook(self._turn)

    def _turn(self, module: nn.Module, args: Any) -> None:
        """Compute R1 and the signs behind it, before the model runs."""
        matrix = self.start.float() @ cayley(self.parameters["skew"])
        signs = torch.ones(len(self.inputs), 1)
        if self.means is not None:
            signs = gain_signs(matrix.detach().double(), self.means).float()
        for source, sign in zip(self.inputs, signs, strict=True):
            source.set(matrix, sign)

    def tensors(self) -> dict[str, Tensor]:
        """`skew` as it is now."""
        return {"skew": self.parameters["skew"].detach().clone()}


class _RotatedInput:
    """What the linears behind one norm read; it is rounded once for all of them."""

    def __init__(self, grid: TokenQuantizer, sinks: int) -> None:
        self.grid, self.sinks = grid, sinks
        self.last: tuple[Tensor, Tensor] | None = None

    def set(self, matrix: Tensor, sign: Tensor) -> None:
        """matrix: R1 [d, d]; sign: +-1 [d] or [1]. Forgets what was rounded with another one."""
        self.matrix, self.sign, self.last = matrix, sign, None

    def __call__(self, x: Tensor) -> Tensor:
        """A norm's output x [B, S, d], from the beginning of its text, rounded behind R1 -> the same shape."""
        if self.last is None or self.last[0] is not x:
            turned = (x @ self.matrix) * self.sign
            levels = rounded(turned.flatten(0, 1), self.grid).view_as(turned)
            levels = torch.cat([turned[:, : self.sinks], levels[:, self.sinks :]], 1)
            self.last = x, (levels * self.sign) @ self.matrix.T
        return self.last[1]


class _FrozenLinear(nn.Module):
    """A linear that gradients pass through, its weight in the dtype that the processor multiplies fastest."""

    def __init__(
        self, linear: nn.Linear, gain: Tensor | None, source: _RotatedInput | None, dtype: torch.dtype
    ) -> None:
        """gain: what its input is multiplied by; source: what rounds its input."""
        super().__init__()
        weight = linear.weight.data if gain is None else linear.weight.data * gain
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.bias, self.source = linear.bias, source

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, K] -> float32 [B, S, N]."""
        rows = x if self.source is None else self.source(x)
        out = F.linear(rows.to(self.weight.dtype), self.weight).float()
        return out if self.bias is None else out + self.bias
