"""Rotate, calibrate and quantize the reference model to W4A4KV4.

python examples/quantize.py [FOLDER]     writes FOLDER/packed, which the other examples read
"""

from __future__ import annotations

import sys
from pathlib import Path

from dfrot import QuantScheme
from dfrot.hub import resolve_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = resolve_model("reference")  # or the folder of a model
    rotated, calibration, packed = folder / "rotated", folder / "calibration", folder / "packed"
    rotate(source, rotated, RotateSettings(method="hadamard", dataset="stdlib"))
    calibrate(rotated, calibration, CalibrateSettings(dataset="stdlib", samples=8, seqlen=256, statistics=False))
    record = quantize(rotated, calibration, packed, QuantizeSettings(QuantScheme.parse("w4a4kv4")))
    sizes = record["sizes"]
    print(
        f"{packed}: {sizes['bits_per_quantized_weight']:.3f} bits per quantized weight, {sizes['bytes'] / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"))
