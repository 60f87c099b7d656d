"""Perplexity of a packed checkpoint beside its source, with paired confidence intervals.

python examples/perplexity.py [FOLDER]     reads FOLDER/packed, which quantize.py writes
"""

from __future__ import annotations

import sys
from pathlib import Path

from dfrot.hub import resolve_model
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings


def main(folder: Path) -> None:
    models = [resolve_model("reference"), folder / "packed"]
    result = evaluate(models, PerplexitySettings(dataset="stdlib", seqlen=512, windows=4, kl=True))
    print(f"protocol {result['protocol']['id']}")
    for row in result["results"]:
        low, high = row["ratio_ci"]
        print(
            f"{Path(row['model']).name}: perplexity {row['perplexity']:.3f}, ratio {row['ratio_to_first']:.4f}, "
            f"95 % interval {low:.4f} .. {high:.4f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"))
