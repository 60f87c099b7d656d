"""A 16-bit checkpoint of any shape with random weights, to time stages at sizes that nobody wants to download.

Weights are normal with the deviation of Llama's initialisation, those that write to the residual stream smaller by the
root of twice the number of blocks, gains of norms about 1: activations stay of a sane size in every block. One tensor
is in memory at a time.

    python recipes/ranks/random_model.py --config config.json --tokenizer FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.arch.space import Size
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.files import write_json

DEVIATION = 0.02
ROWS = 1 << 24  # values that are drawn at a time


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="the model's config.json")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer is copied")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = json.loads(given.config.read_text())
    arch = describe(config)
    shapes = {**arch.tensors(), **arch.biases()}
    given.out.mkdir(parents=True)
    plan = [TensorPlan(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    writer = SafetensorsWriter(given.out, plan)
    small = {
        f"{arch.full(layer, linear.name)}.weight"
        for layer in range(arch.n_layers)
        for tap in arch.taps()
        for linear in tap.linears
        if linear.rows == Size.HIDDEN
    }
    generator = torch.Generator().manual_seed(given.seed)
    for name, shape in shapes.items():
        deviation = DEVIATION / (2 * arch.n_layers) ** 0.5 if name in small else DEVIATION
        width = shape[-1]
        if len(shape) == 1:
            writer.write(name, (1 + 0.1 * torch.randn(shape, generator=generator)).bfloat16())
            continue
        step = max(1, ROWS // width)
        for begin in range(0, shape[0], step):
            writer.write_rows(name, begin, _drawn(min(step, shape[0] - begin), width, deviation, generator))
    writer.sync()
    write_json(given.out / "config.json", config)
    copy_tokenizer(given.tokenizer, given.out)


def _drawn(rows: int, width: int, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, width).normal_(0, deviation, generator=generator).bfloat16()


if __name__ == "__main__":
    main()
