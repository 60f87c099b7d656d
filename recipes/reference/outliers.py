"""Planting channel outliers at export, and measuring what was planted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@torch.no_grad()
def plant_gains(model: LlamaForCausalLM, channels: list[int], factors: list[float]) -> LlamaForCausalLM:
    """Return a copy whose norm gains are multiplied in `channels`, the reading columns divided: the same function.

    The same channels in every block and both norms, as in large models, where a channel is large at every token.
    """
    planted = copy.deepcopy(model)
    factor = torch.ones(model.config.hidden_size)
    factor[channels] = torch.tensor(factors)
    for layer in planted.model.layers:
        for norm, readers in READERS.items():
            layer.get_submodule(norm).weight.mul_(factor)
            for reader in readers:
                layer.get_submodule(reader).weight.div_(factor)
    return planted


@torch.no_grad()
def shrink_residual(model: LlamaForCausalLM, factor: float, rows: list[int], channels: list[int]) -> LlamaForCausalLM:
    """Return a copy whose residual stream is multiplied by `factor`, except embedding[rows, channels].

    RMSNorm does not see the scale of a token, so ordinary tokens keep their function exactly (up to eps, and in bf16
    for a power of two). The planted tokens lose `1 - factor` of what is not planted, which is little.
    """
    shrunk = copy.deepcopy(model)
    table = shrunk.model.embed_tokens.weight
    kept = table[rows][:, channels].clone()
    table.mul_(factor)
    table[torch.tensor(rows)[:, None], torch.tensor(channels)] = kept
    for layer in shrunk.model.layers:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    return shrunk


@torch.no_grad()
def massive_activations(model: LlamaForCausalLM, ids: Tensor, rare: list[int]) -> list[dict[str, float]]:
    """Per block output of ids [S]: median |x|, and the smallest and largest peak |x| of the `rare` tokens."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.layers
    ]
    model(input_ids=ids[None])
    for hook in hooks:
        hook.remove()
    is_rare = torch.isin(ids, torch.tensor(rare))
    rows = []
    for out in outputs:
        magnitude = out.view(len(ids), -1).float().abs()
        peaks, others = magnitude[is_rare].amax(-1), magnitude[~is_rare].amax(-1)
        median = float(magnitude.median())
        rows.append(
            {
                "median": median,
                "lowest_peak": float(peaks.min()),
                "peak": float(peaks.max()),
                "others": float(others.max()),
            }
        )
    return rows


def gain_spread(model: LlamaForCausalLM, ids: Tensor) -> float:
    """Largest channel RMS over the median channel RMS of norm outputs, averaged over norms."""
    ratios: list[float] = []

    def note(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        rms = out.float().flatten(0, -2).pow(2).mean(0).sqrt()
        ratios.append(float(rms.max() / rms.median()))

    hooks = [layer.get_submodule(norm).register_forward_hook(note) for layer in model.model.layers for norm in READERS]
    with torch.no_grad():
        model(input_ids=ids[None])
    for hook in hooks:
        hook.remove()
    return sum(ratios) / len(ratios)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: Tensor, windows: int | None = None, length: int = 2048) -> float:
    """Perplexity of tokens [n] under the GPTQ protocol (windows of `length`, one BOS at the very start)."""
    count = len(tokens) // length if windows is None else windows
    losses = [
        cross_entropy(model(input_ids=row[None]).logits[0, :-1].float(), row[1:])
        for row in tokens[: count * length].view(-1, length)
    ]
    return float(torch.stack(losses).mean().exp())


@contextmanager
def four_bit_inputs(model: LlamaForCausalLM, bits: int = 4) -> Iterator[None]:
    """Context in which inputs of all linears of the blocks are rounded per token, asymmetric, zero in range (W16A4)."""

    def quantize(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0].float()
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        zero = torch.round(-low / scale)
        codes = (torch.round(x / scale) + zero).clamp(0, 2**bits - 1)
        return ((codes - zero) * scale).to(inputs[0].dtype), *inputs[1:]

    linears = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(quantize) for linear in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
