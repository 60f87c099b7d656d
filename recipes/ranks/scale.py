"""What more ranks would bring: a model of one block's time, from costs that were measured on one core.

A block takes: the chunks of the busiest rank, one after the other; what the owner of a tap does while the others wait
(compensation, GPTQ's factor); the rows of the rank that rounds most tiles of them; and bytes over the network. Bytes:
every chunk's products go to the rank that owns the tap, that rank sends Hessian, factor and rows to all others, and the
integers go to everybody. A message waits for the busiest wire, the owner's. Start-up, the head and files are left out.

    python recipes/ranks/scale.py
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from dfrot.quant.rounding.quantized_rows import row_slices

RANKS = (1, 2, 8, 64)
# SmolLM2-135M, (rows of the weights, columns K) of the taps of a block
TAPS = ((576 + 2 * 192, 576), (576, 576), (2 * 1536, 576), (576, 1536))
HESSIAN = 0.5625 * 4  # bytes per K^2: the upper block triangle in float32
ERROR = 4.0  # bytes per K^2: what compensation adds


@dataclass(frozen=True)
class Stage:
    """Costs of one block."""

    name: str
    chunk_seconds: float
    """Per chunk of 4096 tokens."""
    serial_seconds: float
    """Once."""
    rows_seconds: float
    """Of all rows together, which ranks share in tiles."""
    product_bytes: float
    """Per K^2 of a tap and chunk."""
    sends_weights: bool
    """Whether the owner of a tap sends what the others need to round its rows."""


# measured: one thread on an AMD EPYC (Zen 5), torch 2.13, 16 chunks of 4 windows of 1024 tokens (docs/guides/ranks.md)
STAGES = (
    Stage("calibrate", 0.32, 0.0, 0.0, HESSIAN, False),
    Stage("quantize", 0.71, 0.43, 1.0, HESSIAN + ERROR, True),
)


def seconds(stage: Stage, ranks: int, chunks: int, bandwidth: float, latency: float) -> float:
    """Time of one block. bandwidth: bytes per second of one rank's wire. latency: seconds per exchange."""
    rounds = math.ceil(chunks / ranks)
    arriving = chunks * (ranks - 1) / ranks * stage.product_bytes * sum(k * k for _, k in TAPS)
    leaving = (ranks - 1) * sum(8 * k * k + 5 * n * k for n, k in TAPS) if stage.sends_weights else 0
    waiting = latency * len(TAPS) * (rounds + 1) if ranks > 1 else 0.0
    computing = rounds * stage.chunk_seconds + stage.serial_seconds + busiest_rows(ranks) * stage.rows_seconds
    return computing + (arriving + leaving) / bandwidth + waiting


def busiest_rows(ranks: int) -> float:
    """The share of all weights that the rank with most tiles rounds."""
    share = 0.0
    for rows, columns in TAPS:
        tiles = len(row_slices(rows, columns))
        share += rows * columns * math.ceil(tiles / ranks) / tiles
    return share / sum(rows * columns for rows, columns in TAPS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=64, help="of 4096 tokens: 64 are 128 samples of 2048 tokens")
    parser.add_argument("--gigabits", type=float, default=25.0, help="of a rank's wire")
    parser.add_argument("--latency", type=float, default=1e-3, help="seconds per exchange")
    given = parser.parse_args()
    print("| stage | ranks | seconds per block | times as fast |")
    print("| --- | --- | --- | --- |")
    for stage in STAGES:
        alone = seconds(stage, 1, given.chunks, 1.0, 0.0)
        for ranks in RANKS:
            shared = seconds(stage, ranks, given.chunks, given.gigabits * 1e9 / 8, given.latency)
            print(f"| {stage.name} | {ranks} | {shared:.2f} | {alone / shared:.1f} |")


if __name__ == "__main__":
    main()
