"""Everything that is measured inside one block, gathered window by window and closed while its weights are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import Norm, Tap
from dfrot.calib.observe import linear_of
from dfrot.outliers.measure import channels
from dfrot.outliers.measure import quantization_errors as errors
from dfrot.outliers.measure.block_view import BlockCapture
from dfrot.outliers.measure.criteria import Criteria
from dfrot.outliers.measure.sinks import SinkMeter
from dfrot.outliers.measure.sketch import ChannelSketch
from dfrot.outliers.measure.subject import Subject

SAMPLE = 256  # rows per tap that meet the weights


class BlockMeter:
    """One block. `add` every window's view, then `close` with the block itself."""

    def __init__(self, subject: Subject, layer: int, windows: int, criteria: Criteria) -> None:
        self.subject, self.layer, self.criteria = subject, layer, criteria
        arch = subject.arch
        self.arch, self.taps = arch, arch.taps()
        self.quota = max(1, SAMPLE // windows)
        self.sketches = {tap.name: ChannelSketch(arch.sizes[tap.linears[0].cols]) for tap in self.taps}
        self.heads = {
            one.name: ChannelSketch(arch.sizes[one.rows]) for one in arch.spec.linears if one.writes in ("qk", "v")
        }
        self.rows: dict[str, list[Tensor]] = {tap.name: [] for tap in self.taps}
        self.flags: dict[str, list[Tensor]] = {tap.name: [] for tap in self.taps}
        self.sinks = SinkMeter(arch.n_heads)
        self.kv: list[dict[str, Any]] = []

    def norm(self, tap: Tap) -> Norm | None:
        """The norm whose output a tap is."""
        return next((norm for norm in self.arch.spec.norms if tap.linears[0].name in norm.feeds), None)

    def gain(self, tap: Tap) -> Tensor | None:
        """What that norm multiplies by, float32 [hidden]."""
        norm = self.norm(tap)
        if norm is None:
            return None
        name = f"{self.arch.full(self.layer, norm.name)}.weight"
        return self.subject.checkpoint.read(name).float() + norm.offset

    def add(self, view: BlockCapture, massive: dict[str, Tensor]) -> None:
        """massive: norm name -> bool [S]; a tap behind no norm takes the mask of the norm before it."""
        mask = torch.zeros(len(view.tokens), dtype=torch.bool)
        for tap in self.taps:
            norm = self.norm(tap)
            mask = massive[norm.name] if norm is not None else mask
            x = view.taps[tap.name]
            self.sketches[tap.name].add(x)
            common = (~mask).nonzero().flatten()
            even = common[torch.linspace(0, max(len(common) - 1, 0), min(self.quota, len(common))).long()]
            picked = torch.cat([mask.nonzero().flatten()[: self.quota], even])
            self.rows[tap.name].append(x[picked].float())
            self.flags[tap.name].append(mask[picked])
        for name, sketch in self.heads.items():
            sketch.add(view.heads[name])
        first = massive[self.arch.spec.norms[0].name].nonzero().flatten().tolist()
        self.sinks.add(view, first)
        assert view.key is not None
        assert view.value is not None
        rotate = not self.subject.rotated
        pair = {"keys": view.key, "values": view.value}
        self.kv.append({name: errors.kv_errors(x, first, rotate or name == "keys") for name, x in pair.items()})

    def close(self, block: nn.Module) -> dict[str, Any]:
        """The layer's part of the report."""
        norms: dict[str, Any] = {}
        heads: dict[str, Any] = {}
        taps: dict[str, Any] = {}
        limit = self.criteria.channel
        for tap in self.taps:
            rows, flags = torch.cat(self.rows[tap.name]), torch.cat(self.flags[tap.name])
            sketch, gain = self.sketches[tap.name], self.gain(tap)
            norm = self.norm(tap)
            modules = {one.name: linear_of(block, one.name) for one in tap.linears}
            weights = [module.weight for module in modules.values()]
            width = self.arch.head_dim if tap.reads == "v" else None
            basis = not self.subject.rotated
            if norm is not None:
                found = channels.norm_outliers(sketch, gain, limit)
                energy = channels.relative_read_energy(weights, sketch.mean_square(), found["channels"])
                for one in found["outliers"]:
                    one["read_energy_over_median"] = energy[one["channel"]]
                norms[norm.name] = found
            for one in tap.linears:
                if one.writes == "qk":
                    mean_square = sketch.mean_square()
                    heads[one.name] = channels.head_outliers(
                        self.heads[one.name], modules[one.name].weight, mean_square, rows[~flags], limit
                    )
            taps[tap.name] = {
                "kurtosis": sketch.kurtosis(),
                "absmax": float(sketch.absmax.max()),
                "max_over_median": float(sketch.absmax.max() / sketch.median().median().clamp_min(1e-30)),
                "activations": errors.activation_errors(rows, flags, weights, gain, width, basis),
                "weights": {
                    name: errors.weight_errors(module.weight, rows[~flags], gain, width, basis)
                    for name, module in modules.items()
                },
            }
        return {"norms": norms, "heads": heads, "taps": taps, "sinks": self.sinks.result(), "kv": self._kv()}

    def _kv(self) -> dict[str, Any]:
        """Means over windows."""
        found: dict[str, Any] = {}
        for side in self.kv[0]:
            found[side] = {}
            for basis in self.kv[0][side]:
                parts = [one[side][basis] for one in self.kv]
                clips = {clip: sum(p["by_clip"][clip] for p in parts) / len(parts) for clip in parts[0]["by_clip"]}
                found[side][basis] = {
                    "relative": clips["1.0"],
                    "massive_share": sum(p["massive_share"] for p in parts) / len(parts),
                    "by_clip": clips,
                    "best_clip": float(min(clips, key=lambda clip: clips[clip])),
                }
        return found
