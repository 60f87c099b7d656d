"""Find massive activations and channel outliers of the reference model.

python examples/outliers.py [FOLDER]     writes FOLDER/outliers with report.json and report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from dfrot.hub import resolve_model
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.settings import OutlierSettings


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = OutlierSettings(dataset="stdlib", seqlen=256, rounds=2, perplexity=False)
    report = outliers(resolve_model("reference"), folder / "outliers", settings)
    for channel in report["massive"]["channels"]:
        print(f"massive activation: channel {channel['channel']}, {channel['value']:.0f}, from {channel['created']}")
    for channel in report["channel_outliers"]:
        print(f"channel outlier: channel {channel['channel']}, {channel['ratio']:.1f} times the median channel")
    print(f"report: {folder / 'outliers' / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"))
