"""The paper's figure on generated activations: per-token 4-bit error under four rotations, massive and common tokens.

The refinement is fitted on one set of rows and measured on another with the same massive channels: at width 4096 a
rotation has more freedom than a few thousand rows determine, so errors on the fitted rows would be too small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.bench.plotting import DPI, new_figure
from dfrot.bench.refinement.synthetic_rows import PROFILES, llama_like_rows
from dfrot.bench.settings import FigureBenchSettings
from dfrot.progress import Progress, silent
from dfrot.rotation.hadamard import random_orthogonal, randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import unit_weight_rows
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

MODES = ("symmetric", "asymmetric")
MEASURED_SEED = 1_000_003  # added to the seed for the rows that are measured
METHODS = ("none", "orthogonal", "hadamard", "dfrot")
LABELS = {"none": "no rotation", "orthogonal": "orthogonal (RO)", "hadamard": "Hadamard (RH)", "dfrot": "DFRot"}
TICKS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)  # two or three to a decade: more would overlap
COLOURS = {"none": "#7f7f7f", "orthogonal": "#d62728", "hadamard": "#1f77b4", "dfrot": "#2ca02c"}


def token_errors(rows: Tensor, matrix: Tensor | None, grid: TokenQuantizer) -> Tensor:
    """|x - Q(x)| of rows [n, d] in the basis `matrix` [d, d] (None: their own), float64 [n]."""
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
    """Per-token errors under four rotations; JSON.

    `figures[mode][set][method]` = {"absolute", "relative"} lists of errors (relative to the norm of the token), mode
    "symmetric" or "asymmetric", set "massive" or "common", method one of METHODS; `means`: the means of the relative
    errors. common, massive: numbers of tokens; profiles: channel profiles of the common ones."""
    fit_rows, fit_mask = llama_like_rows(common, massive, width, seed, profiles)
    rows, mask = llama_like_rows(common, massive, width, seed + MEASURED_SEED, profiles)
    features = unit_weight_rows(fit_rows, massive=fit_mask)
    start = randomized_hadamard(width, seed)
    fixed: dict[str, Tensor | None] = {"none": None, "orthogonal": random_orthogonal(width, seed), "hadamard": start}
    norms = rows.double().norm(dim=1)
    figures: dict[str, Any] = {}
    means: dict[str, Any] = {}
    for mode in MODES:
        symmetric = mode == "symmetric"
        grid = TokenQuantizer(bits, symmetric)
        settings = RefineSettings(bits=bits, symmetric=symmetric, rounds=rounds, tol=0.0, seed=seed)
        refined = refine(features, start, settings, progress=progress).matrix
        errors = {name: token_errors(rows, matrix, grid) for name, matrix in {**fixed, "dfrot": refined}.items()}
        figures[mode] = {
            kind: {
                name: {"absolute": error[part].tolist(), "relative": (error[part] / norms[part]).tolist()}
                for name, error in errors.items()
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


def plot_figure(data: dict[str, Any], path: Path) -> None:
    """Draw `figure_data` as a PNG (or what the suffix says). Raises ResourceError without matplotlib."""
    figure = new_figure(10, 7)
    axes = figure.subplots(2, 2, sharey=True)
    for row, mode in enumerate(MODES):
        for column, kind in enumerate(("massive", "common")):
            axis = axes[row][column]
            _draw_errors(axis, data["figures"][mode][kind], data["means"][mode][kind])
            axis.set_title(f"{kind} tokens ({data[kind]}), {mode} {data['bits']}-bit")
            axis.legend(fontsize=8, loc="upper left" if kind == "common" else "center left")
            if column == 0:
                axis.set_ylabel("error / norm of the token")
            if row == 1:
                axis.set_xlabel("tokens sorted by error (%)")
    figure.suptitle(f"Per-token quantization error of generated RMSNorm outputs, width {data['width']}")
    figure.savefig(path, dpi=DPI)


def _draw_errors(axis: Any, token_errors: dict[str, dict[str, list[float]]], means: dict[str, float]) -> None:
    """One line per method: relative errors of the tokens, sorted, on a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    for name in METHODS:
        values = sorted(token_errors[name]["relative"])
        share = [100.0 * (i + 0.5) / len(values) for i in range(len(values))]
        axis.plot(share, values, label=f"{LABELS[name]}: mean {means[name]:.3f}", color=COLOURS[name], linewidth=1.8)
    axis.set_yscale("log")
    axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(True, alpha=0.25)
