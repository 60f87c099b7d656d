"""Query and key channels: scale between the two so that keys, which are quantized, lose their outliers to queries.

q k^T does not change when a channel of k is divided by s and the same channel of q multiplied by it; behind RoPE this
holds when both channels of a rotation pair share s, with grouped queries when all queries of a group do. The scale of
a pair is its root mean square to the power alpha; alpha is tuned per layer, by the error that 4-bit keys make in the
scores (with R3, as deployed). The paper tunes outlier-triggering channels of W_q (arXiv 2505.21670); how is not known,
this is our way, and it preserves the function.
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

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = 256  # queries that judge


class QueryFix:
    """Fix `query`."""

    name = "query"
    modes: tuple[str, ...] = ("balance",)

    @torch.no_grad()
    def plan(self, context: Context, mode: str) -> Change:
        arch, subject = context.arch, context.subject
        if arch.spec.head_norms:
            raise UnsupportedError(
                f"fix query: {arch.spec.model_type} normalises queries and keys behind the projection; a scale of the "
                "projection would be normalised away"
            )
        pairs = [one.name for one in arch.spec.linears if one.writes == "qk"]
        query, key = pairs
        change = Change(exact=True, account={"layers": []})
        hidden = subject.runner.embed(context.tokens[:1])[0]
        for layer in range(arch.n_layers):
            view = BlockCapture(layer, 0, context.tokens[0], hidden)
            hidden = run_and_capture(subject.runner, subject.block(layer), arch, view, subject.cache())
            assert view.query is not None
            assert view.key is not None
            scale, told = tune_scale(view.query, view.key)
            change.account["layers"].append({"layer": layer, **told})
            if told["alpha"]:
                groups = arch.n_heads // arch.n_kv_heads
                factors = {key: (1 / scale).flatten(), query: scale.repeat_interleave(groups, 0).flatten()}
                for name, factor in factors.items():
                    for part in ("weight", "bias"):
                        full = f"{arch.full(layer, name)}.{part}"
                        if full in subject.checkpoint:
                            change.edit(full, scaled_rows(factor))
        return change


def tune_scale(query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """query [heads, S, D], key [kv heads, S, D] behind RoPE -> scale [kv heads, D] to divide keys by, and the score
    error (relative) of every alpha."""
    kv, length, width = key.shape
    half = width // 2
    energy = key.double().square().mean(1)
    pair = (energy[:, :half] + energy[:, half:]).sqrt().clamp_min(1e-12)
    pair = (pair / pair.log().mean(1, keepdim=True).exp()).float()
    picked = torch.linspace(0, length - 1, min(ROWS, length)).long()
    grouped = query.float().view(kv, -1, length, width)[:, :, picked].flatten(1, 2)
    exact = grouped @ key.float().transpose(1, 2)
    errors: dict[float, float] = {}
    for alpha in ALPHAS:
        scale = torch.cat([pair, pair], 1).pow(alpha)[:, None]
        turned = to_hadamard_basis((key.float() / scale).reshape(-1, width)).view(key.shape)
        lost = fake_quantize_kv(turned, BITS, False) - turned
        probe = to_hadamard_basis((grouped * scale).reshape(-1, width)).view(grouped.shape)
        errors[alpha] = float((probe @ lost.transpose(1, 2)).square().sum() / exact.square().sum().clamp_min(1e-30))
    best = min(errors, key=lambda alpha: errors[alpha])
    told = {"alpha": best, "score_error": errors[best], "score_error_before": errors[0.0]}
    return torch.cat([pair, pair], 1).pow(best), told
