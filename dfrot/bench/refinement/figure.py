"""The paper's figure on generated activations: per-token 4-bit error under four rotations, massive and common tokens.

The refinement is fitted on one set of rows and everything is measured on another draw with the same massive
channels: at width 4096 a rotation has more freedom than a few thousand rows can pin down, so errors on the fitted
rows would flatter it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.bench.refinement.synthetic_rows import PROFILES, llama_like_rows
from dfrot.bench.settings import FigureBenchSettings
from dfrot.errors import ResourceError
from dfrot.rotation.hadamard import random_orthogonal, randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import unit_weight_rows
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer
from dfrot.stage_folder import Progress, silent

METHODS = ("none", "orthogonal", "hadamard", "dfrot")
LABELS = {"none": "no rotation", "orthogonal": "orthogonal (RO)", "hadamard": "Hadamard (RH)", "dfrot": "DFRot"}
COLOURS = {"none": "#7f7f7f", "orthogonal": "#d62728", "hadamard": "#1f77b4", "dfrot": "#2ca02c"}


def errors(rows: Tensor, matrix: Tensor | None, grid: TokenQuantizer) -> Tensor:
    """|x - Q(x)| of rows [n, d] in the basis `matrix` (None: their own), float64 [n]."""
    return grid.error(rows if matrix is None else rows @ matrix.float()).sqrt()


def figure_data(
    width: int = FigureBenchSettings.width,
    common: int = FigureBenchSettings.common,
    massive: int = 64,
    *,
    rounds: int = FigureBenchSettings.rounds,
    bits: int = FigureBenchSettings.bits,
    seed: int = 0,
    profiles: tuple[str, ...] = PROFILES,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Per-token errors, JSON: `figures[mode][set][method]` = {"absolute", "relative"} lists (relative to the norm of
    the token), mode "symmetric" or "asymmetric", set "massive" or "common"; `means` the same reduced to means."""
    fit_rows, fit_mask = llama_like_rows(common, massive, width, seed, profiles)
    rows, mask = llama_like_rows(common, massive, width, seed + 1_000_003, profiles)
    features = unit_weight_rows(fit_rows, massive=fit_mask)
    start = randomized_hadamard(width, seed)
    fixed: dict[str, Tensor | None] = {
        "none": None,
        "orthogonal": random_orthogonal(width, seed),
        "hadamard": start,
    }
    norms = rows.double().norm(dim=1)
    figures: dict[str, Any] = {}
    means: dict[str, Any] = {}
    for mode, symmetric in (("symmetric", True), ("asymmetric", False)):
        grid = TokenQuantizer(bits, symmetric)
        settings = RefineSettings(bits=bits, symmetric=symmetric, rounds=rounds, tol=0.0, seed=seed)
        refined = refine(features, start, settings, progress=progress).matrix
        found = {name: errors(rows, matrix, grid) for name, matrix in {**fixed, "dfrot": refined}.items()}
        figures[mode] = {
            kind: {
                name: {"absolute": value[part].tolist(), "relative": (value[part] / norms[part]).tolist()}
                for name, value in found.items()
            }
            for kind, part in (("massive", mask), ("common", ~mask))
        }
        means[mode] = {
            kind: {name: sum(v["relative"]) / len(v["relative"]) for name, v in methods.items()}
            for kind, methods in figures[mode].items()
        }
    return {
        "width": width,
        "common": common,
        "massive": massive,
        "rounds": rounds,
        "bits": bits,
        "seed": seed,
        "means": means,
        "figures": figures,
    }


TICKS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)  # two or three to a decade: more would overlap


def plot(data: dict[str, Any], path: Path) -> None:
    """Draw `figure_data` as a PNG (or what the suffix says). Raises ResourceError without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator
    except ImportError:
        raise ResourceError("the figure needs matplotlib, which is not installed: pip install 'dfq[plot]'") from None
    sheet = Figure(figsize=(10, 7), layout="constrained")
    axes = sheet.subplots(2, 2, sharey=True)
    for row, mode in enumerate(("symmetric", "asymmetric")):
        for column, kind in enumerate(("massive", "common")):
            axis = axes[row][column]
            for name in METHODS:
                values = sorted(data["figures"][mode][kind][name]["relative"])
                share = [100.0 * (i + 0.5) / len(values) for i in range(len(values))]
                mean = data["means"][mode][kind][name]
                axis.plot(share, values, label=f"{LABELS[name]}: mean {mean:.3f}", color=COLOURS[name], linewidth=1.8)
            axis.set_yscale("log")
            axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(True, alpha=0.25)
            axis.set_title(f"{kind} tokens ({data[kind]}), {mode} {data['bits']}-bit")
            axis.legend(fontsize=8, loc="upper left" if kind == "common" else "center left")
            if column == 0:
                axis.set_ylabel("error / norm of the token")
            if row == 1:
                axis.set_xlabel("tokens sorted by error (%)")
    sheet.suptitle(f"Per-token quantization error of generated RMSNorm outputs, width {data['width']}")
    sheet.savefig(path, dpi=130)
