"""Running a 16-bit block as the quantized model will run: activations and KV rounded on the way.

GPTQ needs this: later layers shall make up for what the rounding of earlier ones did, of weights, activations and KV
alike. Leading sink positions stay exact, as in the running model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfrot.arch import Tap
from dfrot.arch.space import Space
from dfrot.calib.taps import inner_linear
from dfrot.quant.activations import TokenCodes, fake_quantize_kv
from dfrot.quant.fp4 import round_groups
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.rotation.online import HadamardSpec
from dfrot.runtime.experts import Experts, find_experts
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight


class _LastRounded(threading.local):
    """The last input of a tap, what it was rounded to, and how many linears got it. Each thread has its own run of the
    block."""

    source: Tensor | None = None
    result: Tensor | None = None
    uses: int = 0
    codes: TokenCodes | None = None
    products: int = 0

    def forget(self) -> None:
        """Release the activations."""
        self.source, self.result, self.codes = None, None, None


class TapQuantizer:
    """A forward pre-hook shared by all `linears` linears of a tap: they get the same tensor, so it is rounded once."""

    def __init__(
        self,
        scheme: QuantScheme,
        sink_tokens: int,
        mixture: Experts | None,
        linears: int,
        overwrites: bool,
        shared: float | None = None,
    ) -> None:
        self.shared = shared
        self.linears, self.overwrites = linears, overwrites
        self.scheme, self.sink_tokens, self.mixture = scheme, sink_tokens, mixture
        self.seqlen = 1
        self.last = _LastRounded()

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        x, last = args[0], self.last
        if x is not last.source or last.result is None:
            rounded = self._round(x)
            last.source, last.uses, last.products = x, 0, 0
            last.result = x.copy_(rounded) if self.overwrites else rounded
        result = last.result
        last.uses += 1
        if last.uses == self.linears:
            last.source = last.result = None
        return (result,)

    def _round(self, x: Tensor) -> Tensor:
        """x [..., K] rounded, but for sinks. Keeps codes of integers, unless an expert's sinks are scattered."""
        rows = self.mixture.rows if self.mixture is not None else None
        if self.scheme.number_format != INTEGERS:
            rounded = round_groups(x, self.scheme.number_format, self.shared).to(x.dtype)
        else:
            codes = TokenCodes.of(x, self.scheme.a_bits, self.scheme.a_sym, self.scheme.a_clip)
            rounded = codes.dequantize().view(x.shape).to(x.dtype)
            if rows is None or not self.sink_tokens:
                self.last.codes = codes
        if self.sink_tokens and rows is None:
            rounded[:, : self.sink_tokens] = x[:, : self.sink_tokens]
        elif self.sink_tokens and rows is not None:
            leading = rows % self.seqlen < self.sink_tokens
            rounded[leading] = x[leading]
        return rounded

    def codes(self) -> TokenCodes | None:
        """What the linear that runs now got, as integers, sinks too; None where there are none."""
        last = self.last
        codes = last.codes
        last.products += 1
        if last.products == self.linears:
            last.codes = None
        return codes

    def begin(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of the block, which runs on hidden [B, S, d]: experts get some of its B S rows."""
        self.seqlen = args[0].shape[1]

    def forget(self, *_: Any) -> None:
        """Forward hook of the block: release the activations of the last run."""
        self.last.forget()


class SimulatedProduct:
    """`forward` of a linear behind a TapQuantizer: in float32 until its weight is packed, then the integer product of
    the packed model, where a native kernel has it."""

    def __init__(self, linear: nn.Linear, quantizer: TapQuantizer) -> None:
        # the parameters alone: a reference to the linear would keep the block alive
        self.dense, self.bias, self.quantizer = linear.weight, linear.bias, quantizer
        self.packed: PreparedWeight | None = None

    def pack(self, weight: PackedWeight) -> None:
        """Multiply by `weight`, which the dense weight of the linear must equal, from now on."""
        if PreparedWeight.serves(weight):
            self.packed = PreparedWeight.from_packed(weight, with_sums=not self.quantizer.scheme.a_sym)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K], as the quantizer rounded it -> [..., N]."""
        codes = self.quantizer.codes()
        if codes is None or self.packed is None:
            return functional.linear(x, self.dense, self.bias)
        zero = None if self.quantizer.scheme.a_sym else codes.zero
        product = self.packed.integer_linear(codes.codes, codes.scale, zero, self.bias, x.dtype)
        product = product.view(*x.shape[:-1], -1)
        if sinks := self.quantizer.sink_tokens:
            product[:, :sinks] = functional.linear(x[:, :sinks], self.dense, self.bias)
        return product


def quantize_activations(
    block: nn.Module,
    tap: Tap,
    names: Collection[str],
    scheme: QuantScheme,
    sink_tokens: int,
    overwrite: bool = False,
    shared: float | None = None,
) -> None:
    """Attach the simulated quantizer to those linears of a tap that are in `names` (relative names).

    scheme: with the bits and the clip ratio of this input. sink_tokens: leading positions that stay exact. overwrite:
    round in place where the block computes the input for one linear alone (what attention and MLP return), so that it
    is in memory once. shared: the constant scale of an NVFP4 input."""
    if scheme.a_bits == FULL:
        return
    linears = [linear for linear in tap.linears if linear.name in names]
    mixture = find_experts(block) if tap.expert is not None else None
    own_input = tap.reads in (Space.VALUE, Space.MLP)
    quantizer = TapQuantizer(scheme, sink_tokens, mixture, len(linears), overwrite and own_input, shared)
    if tap.expert is not None:
        block.register_forward_pre_hook(quantizer.begin)
    for linear in linears:
        module = inner_linear(block, linear.name)
        module.register_forward_pre_hook(quantizer)
        if scheme.number_format == INTEGERS:
            module.forward = SimulatedProduct(module, quantizer)  # type: ignore[assignment,method-assign]
    block.register_forward_hook(quantizer.forget, always_call=True)


class SimulatedKV:
    """In place of a transformers cache: keys and values [B, heads, S, head_dim] come back rounded.

    Keys are rounded in the basis of R3, minus `shift` float32 [kv heads, head_dim], and returned in the model's own:
    the rotation of the queries, which would cancel that of the keys, is left out on both sides.
    """

    def __init__(
        self, scheme: QuantScheme, r3: HadamardSpec | None, sink_tokens: int, shift: Tensor | None = None
    ) -> None:
        self.scheme, self.r3, self.sink_tokens = scheme, r3, sink_tokens
        self.shift = None if shift is None else shift[:, None]  # [kv heads, 1, head_dim]
        self.base = r3.base() if r3 is not None else None

    @classmethod
    def of(
        cls, scheme: QuantScheme, r3: HadamardSpec | None, sink_tokens: int, shift: Tensor | None = None
    ) -> SimulatedKV | None:
        """The cache for a scheme; None when the scheme leaves the cache alone."""
        return None if scheme.kv_bits == FULL else cls(scheme, r3, sink_tokens, shift)

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `transformers.Cache.update`: keys and values [B, heads, S, head_dim], rounded."""
        return self._round(self._stored(keys), keys, self._restored), self._round(values, values, lambda x: x)

    def _stored(self, x: Tensor) -> Tensor:
        """Keys in the basis of the cache."""
        if self.base is not None and self.r3 is not None:
            x = torch.ops.dfq.hadamard(x.contiguous(), self.base, self.r3.block)
        return x if self.shift is None else x - self.shift

    def _restored(self, x: Tensor) -> Tensor:
        """The inverse of `_stored`."""
        if self.shift is not None:
            x = x + self.shift
        if self.base is None or self.r3 is None:
            return x
        # H = base (x) Sylvester, and Sylvester is symmetric
        return torch.ops.dfq.hadamard(x, self.base.T.contiguous(), self.r3.block)  # type: ignore[no-any-return]

    def _round(self, x: Tensor, exact: Tensor, rotate_back: Callable[[Tensor], Tensor]) -> Tensor:
        scheme = self.scheme
        out = rotate_back(fake_quantize_kv(x, scheme.kv_bits, scheme.kv_sym, scheme.kv_clip))
        if self.sink_tokens:
            out[:, :, : self.sink_tokens] = exact[:, :, : self.sink_tokens]
        return out
