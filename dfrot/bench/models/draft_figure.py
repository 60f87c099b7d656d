"""The plot of `dfq bench draft`: speedup over acceptance length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.bench.plotting import DPI, new_figure

MAX_DRAFT_TOKENS = 16  # longer drafts are not drawn
POINTS = 40
TICKS = (1, 2, 3, 5, 9, 17)


def plot_draft(result: dict[str, Any], path: Path) -> None:
    """Draw a result of `bench_draft`: a line per number n of draft tokens, up to its largest acceptance length n + 1.

    Raises ResourceError without matplotlib."""
    kinds = list(result["draft"])
    figure = new_figure(4.5 * len(kinds) + 1, 4.2)
    axes: Any = figure.subplots(1, len(kinds), squeeze=False, sharey=True)
    for axis, kind in zip(axes[0], kinds):
        for n, break_even in result["break_even"][kind].items():
            if n <= MAX_DRAFT_TOKENS:
                lengths = [1 + n * point / POINTS for point in range(POINTS + 1)]
                axis.plot(lengths, [length / break_even for length in lengths], label=f"{n} draft tokens")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xlabel="acceptance length", title=f"{kind} draft", xscale="log", xticks=list(TICKS))
        axis.set_xticklabels([str(tick) for tick in TICKS])
        axis.minorticks_off()
        axis.grid(True, alpha=0.25)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("speedup over plain decoding")
    machine = result["machine"]
    title = f"{result['shape']} {result['scheme']}, {machine['processor']}, {machine['threads']} threads"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
