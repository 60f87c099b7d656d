"""Everything that is measured inside one block: collected by window, evaluated while its weights are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import Norm, Tap
from dfrot.calib.taps import inner_linear
from dfrot.outliers.measure import channels
from dfrot.outliers.measure import quantization_errors as errors
from dfrot.outliers.measure.block_view import BlockCapture
from dfrot.outliers.measure.criteria import Criteria
from dfrot.outliers.measure.sinks import SinkMeter
from dfrot.outliers.measure.sketch import ChannelSketch
from dfrot.outliers.measure.subject import Subject

SAMPLE = 256  # rows per tap that are multiplied by the weights


class BlockMeter:
    """One block: `add` the capture of every window, then `close` with the block itself."""

    def __init__(self, subject: Subject, layer: int, windows: int, criteria: Criteria) -> None:
        self.subject, self.layer, self.criteria = subject, layer, criteria
        arch = subject.arch
        self.arch, self.taps = arch, arch.taps()
        self.quota = max(1, SAMPLE // windows)
        self.sketches = {tap.name: ChannelSketch(arch.sizes[tap.linears[0].cols]) for tap in self.taps}
        self.heads = {
            linear.name: ChannelSketch(arch.sizes[linear.rows])
            for linear in arch.spec.linears
            if linear.writes in ("qk", "v")
        }
        self.rows: dict[str, list[Tensor]] = {tap.name: [] for tap in self.taps}  # sampled inputs [n, K]
        self.massive: dict[str, list[Tensor]] = {tap.name: [] for tap in self.taps}  # which of them are, bool [n]
        self.sinks = SinkMeter(arch.n_heads)
        self.kv: list[dict[str, Any]] = []

    def norm(self, tap: Tap) -> Norm | None:
        """The norm whose output a tap is, if any."""
        return next((norm for norm in self.arch.spec.norms if tap.linears[0].name in norm.feeds), None)

    def gain(self, tap: Tap) -> Tensor | None:
        """The gain of that norm, float32 [hidden]."""
        norm = self.norm(tap)
        if norm is None:
            return None
        name = f"{self.arch.full(self.layer, norm.name)}.weight"
        return self.subject.checkpoint.read(name).float() + norm.offset

    def add(self, capture: BlockCapture, massive: dict[str, Tensor]) -> None:
        """Add a window. massive: norm -> which tokens are massive, bool [S]. A tap behind no norm takes the mask of the
        norm before it."""
        mask = torch.zeros(len(capture.tokens), dtype=torch.bool)
        for tap in self.taps:
            norm = self.norm(tap)
            mask = massive[norm.name] if norm is not None else mask
            self._add_tap(tap.name, capture.taps[tap.name], mask)
        for name, sketch in self.heads.items():
            sketch.add(capture.heads[name])
        positions = massive[self.arch.spec.norms[0].name].nonzero().flatten().tolist()
        self.sinks.add(capture, positions)
        assert capture.key is not None
        assert capture.value is not None
        rotate = not self.subject.rotated
        pair = {"keys": capture.key, "values": capture.value}
        self.kv.append({side: errors.kv_errors(x, positions, rotate or side == "keys") for side, x in pair.items()})

    def _add_tap(self, name: str, x: Tensor, massive: Tensor) -> None:
        """Sketch all inputs [S, K] of a tap and keep a sample: massive tokens first, common ones evenly spaced."""
        self.sketches[name].add(x)
        common = (~massive).nonzero().flatten()
        sample = common[torch.linspace(0, max(len(common) - 1, 0), min(self.quota, len(common))).long()]
        kept = torch.cat([massive.nonzero().flatten()[: self.quota], sample])
        self.rows[name].append(x[kept].float())
        self.massive[name].append(massive[kept])

    def close(self, block: nn.Module) -> dict[str, Any]:
        """The layer's part of the report."""
        norms: dict[str, Any] = {}
        heads: dict[str, Any] = {}
        taps: dict[str, Any] = {}
        for tap in self.taps:
            rows, massive = torch.cat(self.rows[tap.name]), torch.cat(self.massive[tap.name])
            modules = {linear.name: inner_linear(block, linear.name) for linear in tap.linears}
            norm = self.norm(tap)
            if norm is not None:
                norms[norm.name] = self._norm_outliers(tap, [module.weight for module in modules.values()])
            for linear in tap.linears:
                if linear.writes == "qk":
                    mean_square = self.sketches[tap.name].mean_square()
                    weight, sketch = modules[linear.name].weight, self.heads[linear.name]
                    heads[linear.name] = channels.head_outliers(
                        sketch, weight, mean_square, rows[~massive], self.criteria.channel
                    )
            taps[tap.name] = self._tap_errors(tap, modules, rows, massive)
        return {"norms": norms, "heads": heads, "taps": taps, "sinks": self.sinks.result(), "kv": self._kv_errors()}

    def _norm_outliers(self, tap: Tap, weights: list[Tensor]) -> dict[str, Any]:
        """Channel outliers behind a norm, with what the weights make of them."""
        sketch = self.sketches[tap.name]
        report = channels.norm_outliers(sketch, self.gain(tap), self.criteria.channel)
        energy = channels.relative_read_energy(weights, sketch.mean_square(), report["channels"])
        for outlier in report["outliers"]:
            outlier["read_energy_over_median"] = energy[outlier["channel"]]
        return report

    def _tap_errors(self, tap: Tap, modules: Mapping[str, nn.Module], rows: Tensor, massive: Tensor) -> dict[str, Any]:
        """Distribution of a tap and what 4 bits do to it and to the weights that read it."""
        sketch, gain = self.sketches[tap.name], self.gain(tap)
        weights: dict[str, Any] = {name: module.weight for name, module in modules.items()}
        block = self.arch.head_dim if tap.reads == "v" else None
        with_hadamard = not self.subject.rotated
        return {
            "kurtosis": sketch.kurtosis(),
            "absmax": float(sketch.absmax.max()),
            "max_over_median": float(sketch.absmax.max() / sketch.median().median().clamp_min(1e-30)),
            "activations": errors.activation_errors(rows, massive, list(weights.values()), gain, block, with_hadamard),
            "weights": {
                name: errors.weight_errors(weight, rows[~massive], gain, block, with_hadamard)
                for name, weight in weights.items()
            },
        }

    def _kv_errors(self) -> dict[str, Any]:
        """Errors of keys and values by basis, means over windows."""
        means: dict[str, Any] = {}
        for side in self.kv[0]:
            means[side] = {}
            for basis in self.kv[0][side]:
                parts = [window[side][basis] for window in self.kv]
                by_clip = {
                    clip: sum(part["by_clip"][clip] for part in parts) / len(parts) for clip in parts[0]["by_clip"]
                }
                means[side][basis] = {
                    "relative": by_clip["1.0"],
                    "massive_share": sum(part["massive_share"] for part in parts) / len(parts),
                    "by_clip": by_clip,
                    "best_clip": float(min(by_clip, key=lambda clip: by_clip[clip])),
                }
        return means
