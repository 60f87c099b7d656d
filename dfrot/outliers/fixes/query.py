"""Query and key channels: keys, which are quantized, pass their outliers on to queries, which are not.

q k^T does not change when a channel of k is divided by s and the same channel of q multiplied by it. Behind RoPE this
holds when both channels of a rotation pair share s; with grouped queries, when all queries of a group do. The scale of
a pair is its root mean square to the power alpha. alpha is tuned per layer, by the error that 4-bit keys make in the
scores (with R3, as deployed). The paper tunes outlier-triggering channels of W_q (arXiv 2505.21670) but does not say
how; this method is ours, and it preserves the function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.outliers.fixes.base import Change, Context, scaled_rows
from dfrot.outliers.measure.block_view import BlockCapture, run_and_capture
from dfrot.outliers.measure.quantization_errors import BITS, to_hadamard_basis
from dfrot.quant.activations import fake_quantize_kv
from dfrot.rotation.transforms import per_query_head

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
QUERIES = 256  # sampled for the error of the scores


class QueryFix:
    """Fix `query`."""

    name = "query"
    modes: tuple[str, ...] = ("balance",)

    @torch.no_grad()
    def plan(self, context: Context, mode: str) -> Change:
        """As `Fix.plan`."""
        arch, subject = context.arch, context.subject
        if arch.spec.head_norms:
            raise UnsupportedError(
                f"fix query: {arch.spec.model_type} normalises queries and keys behind the projection; a scale of the "
                "projection would be normalised away"
            )
        change = Change(exact=True, account={"layers": []})
        hidden = subject.runner.embed(context.tokens[:1])[0]
        for layer in range(arch.n_layers):
            capture = BlockCapture(layer, 0, context.tokens[0], hidden)
            hidden = run_and_capture(subject.runner, subject.block(layer), arch, capture, subject.cache(layer))
            assert capture.query is not None
            assert capture.key is not None
            scale, account = tune_scale(capture.query, capture.key)
            change.account["layers"].append({"layer": layer, **account})
            if account["alpha"]:
                _scale_projections(change, context, layer, scale)
        return change


def _scale_projections(change: Change, context: Context, layer: int, scale: Tensor) -> None:
    """Divide the key projection of a layer by scale [kv heads, D] and multiply the query projection by it."""
    arch = context.arch
    query, key = (linear.name for linear in arch.spec.linears if linear.writes == "qk")
    factors = {key: (1 / scale).flatten(), query: per_query_head(arch, scale).flatten()}
    for name, factor in factors.items():
        for part in ("weight", "bias"):
            tensor = f"{arch.full(layer, name)}.{part}"
            if tensor in context.subject.checkpoint:
                change.edit(tensor, scaled_rows(factor))


def tune_scale(query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The scale [kv heads, D] to divide keys by, and its alpha and relative score errors as JSON.

    query [heads, S, D], key [kv heads, S, D]: behind RoPE."""
    kv_heads, length, width = key.shape
    half = width // 2
    energy = key.double().square().mean(1)
    pair = (energy[:, :half] + energy[:, half:]).sqrt().clamp_min(1e-12)
    pair = (pair / pair.log().mean(1, keepdim=True).exp()).float()  # relative to the geometric mean of the head
    sample = torch.linspace(0, length - 1, min(QUERIES, length)).long()
    grouped = query.float().view(kv_heads, -1, length, width)[:, :, sample].flatten(1, 2)
    exact = grouped @ key.float().transpose(1, 2)
    errors: dict[float, float] = {}
    for alpha in ALPHAS:
        scale = torch.cat([pair, pair], 1).pow(alpha)[:, None]
        rotated_key = to_hadamard_basis((key.float() / scale).reshape(-1, width)).view(key.shape)
        key_error = fake_quantize_kv(rotated_key, BITS, False) - rotated_key
        rotated_query = to_hadamard_basis((grouped * scale).reshape(-1, width)).view(grouped.shape)
        score_error = (rotated_query @ key_error.transpose(1, 2)).square().sum()
        errors[alpha] = float(score_error / exact.square().sum().clamp_min(1e-30))
    best = min(errors, key=lambda alpha: errors[alpha])
    account = {"alpha": best, "score_error": errors[best], "score_error_before": errors[0.0]}
    return torch.cat([pair, pair], 1).pow(best), account
