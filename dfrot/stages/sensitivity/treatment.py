"""Running one block with some of its parts rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch.space import Size, Space
from dfrot.arch.spec import Linear
from dfrot.calib.simulate import SimulatedKV
from dfrot.calib.taps import inner_linear, samples_per_chunk
from dfrot.quant.activations import fake_quantize
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.experts import Experts, find_experts
from dfrot.stages.sensitivity.variants import Variant, tap_label


def key_linear(runner: BlockRunner, layer: int) -> Linear | None:
    """The linear of a block that makes keys, where it adds a bias that reaches attention through RoPE alone."""
    spec = runner.arch.spec
    for linear in spec.linears:
        bias = f"{runner.arch.full(layer, linear.name)}.bias"
        if (
            linear.writes == Space.QUERY_KEY
            and linear.rows == Size.KEY_VALUES
            and not spec.head_norms
            and bias in runner.checkpoint
        ):
            return linear
    return None


class _KeyRecorder:
    """In place of a transformers cache: remembers the keys [B, heads, S, head_dim] and changes nothing."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        return keys, values


class PartialKV:
    """In place of a transformers cache: rounds keys, or values, or those of some tokens."""

    def __init__(self, simulated: SimulatedKV, variant: Variant, mask: Tensor | None, offset: Tensor | None) -> None:
        """mask: bool [B, S], the tokens to round; None: all. offset [1, heads, S, head_dim]: the share of keys that
        stays exact."""
        self.simulated, self.variant, self.mask, self.offset = simulated, variant, mask, offset

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As `transformers.Cache.update`."""
        shifted = keys if self.offset is None else keys - self.offset
        rounded_keys, rounded_values = self.simulated.update(shifted, values, layer)
        if self.offset is not None:
            rounded_keys = rounded_keys + self.offset
        return (
            self._chosen(rounded_keys, keys) if self.variant.keys else keys,
            self._chosen(rounded_values, values) if self.variant.values else values,
        )

    def _chosen(self, rounded: Tensor, exact: Tensor) -> Tensor:
        return rounded if self.mask is None else torch.where(self.mask[:, None, :, None], rounded, exact)


class _InputQuantizer:
    """A forward pre-hook shared by the linears of one tap: they get the same tensor, so it is rounded once."""

    def __init__(self, scheme: QuantScheme, mask: Tensor | None, mixture: Experts | None) -> None:
        """mask: bool [B, S], the tokens to round; None: all."""
        self.scheme, self.mask, self.mixture = scheme, mask, mixture
        self.source: Tensor | None = None
        self.result: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        x = args[0]
        if x is not self.source or self.result is None:
            rounded = fake_quantize(x, self.scheme.a_bits, self.scheme.a_sym, self.scheme.a_clip)
            if self.mask is not None:
                rows = self.mixture.rows if self.mixture is not None else None
                chosen = self.mask if rows is None else self.mask.flatten()[rows]
                rounded = torch.where(chosen[..., None], rounded, x)
            self.source, self.result = x, rounded
        return (self.result,)


class TreatedBlock:
    """One block in memory, run exactly or with the parts of a variant rounded."""

    def __init__(self, runner: BlockRunner, layer: int, scheme: QuantScheme, options: AlgorithmOptions) -> None:
        self.runner, self.layer, self.scheme, self.options = runner, layer, scheme, options
        self.block = runner.block(layer)
        self.cache = SimulatedKV.of(scheme, runner.online.r3 if runner.online else None, 0)
        self._weights: dict[str, Tensor] = {}
        self._offset: Tensor | None = None

    @torch.no_grad()
    def exact(self, hidden: Tensor) -> Tensor:
        """The block itself on hidden [B, S, d]."""
        return self._chunked(hidden, lambda rows: None)

    @torch.no_grad()
    def treated(self, variant: Variant, hidden: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """The block with the parts of `variant` rounded, on hidden [B, S, d]. masks: bool [B, S] by class of tokens."""
        mask = None if variant.tokens is None else masks[variant.tokens]
        offset = self._key_offset(hidden[:1]) if variant.exact_bias else None
        with self._rounded_weights(variant):

            def attach(rows: slice) -> _Attached:
                return self._attach(variant, None if mask is None else mask[rows], offset)

            return self._chunked(hidden, attach)

    def _chunked(self, hidden: Tensor, attach: Callable[[slice], _Attached | None]) -> Tensor:
        """Run as many samples together as memory allows."""
        step = samples_per_chunk(self.runner.arch, hidden.shape[1])
        parts = []
        for begin in range(0, len(hidden), step):
            attached = attach(slice(begin, begin + step))
            try:
                cache = None if attached is None else attached.cache
                parts.append(self.runner.run(self.block, hidden[begin : begin + step], cache))
            finally:
                if attached is not None:
                    attached.hooks.close()
        return torch.cat(parts)

    def _attach(self, variant: Variant, mask: Tensor | None, offset: Tensor | None) -> _Attached:
        """Hooks and cache for one run."""
        hooks = ExitStack()
        mixture = find_experts(self.block)
        for tap in self.runner.arch.taps():
            if tap_label(tap) in variant.inputs:
                quantizer = _InputQuantizer(self.scheme, mask, mixture if tap.expert is not None else None)
                for linear in tap.linears:
                    handle = inner_linear(self.block, linear.name).register_forward_pre_hook(quantizer)
                    hooks.callback(handle.remove)
        cache = None
        if self.cache is not None and (variant.keys or variant.values):
            cache = PartialKV(self.cache, variant, mask, offset)
        return _Attached(hooks, cache)

    @contextmanager
    def _rounded_weights(self, variant: Variant) -> Iterator[None]:
        """Rounded weights in place of exact ones."""
        exact: list[tuple[nn.Linear, Tensor]] = []
        try:
            for tap in self.runner.arch.taps():
                for linear in tap.linears if tap_label(tap) in variant.weights else ():
                    module = inner_linear(self.block, linear.name)
                    exact.append((module, module.weight.data))
                    if linear.name not in self._weights:
                        rounded = rtn.quantize(module.weight.data, None, self.scheme, self.options)
                        self._weights[linear.name] = rounded.dequantize().to(module.weight.dtype)
                    module.weight.data = self._weights[linear.name]
            yield
        finally:
            for module, weight in exact:
                module.weight.data = weight

    def _key_offset(self, hidden: Tensor) -> Tensor | None:
        """What the bias adds to keys behind RoPE, [1, heads, S, head_dim], whatever the text. hidden [1, S, d]."""
        linear = key_linear(self.runner, self.layer)
        if self._offset is None and linear is not None:
            module = inner_linear(self.block, linear.name)
            with_bias, without = _KeyRecorder(), _KeyRecorder()
            self.runner.run(self.block, hidden, with_bias)
            bias, module.bias = module.bias, None  # type: ignore[assignment]
            try:
                self.runner.run(self.block, hidden, without)
            finally:
                module.bias = bias
            self._offset = with_bias.keys - without.keys
        return self._offset


class _Attached:
    """What one run of a block is given."""

    def __init__(self, hooks: ExitStack, cache: PartialKV | None) -> None:
        self.hooks, self.cache = hooks, cache
