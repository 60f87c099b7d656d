"""Images of shapes with what can be said of them, drawn from a seed: nothing is downloaded, nothing is stored."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 32
COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1), "white": (1, 1, 1)}
SHAPES = ("circle", "square", "cross")
SIDES = {"left": 8, "right": 24}


@dataclass(frozen=True)
class Sample:
    """pixels float32 [3, SIZE, SIZE] about in -1 .. 1; a question and its answer."""

    pixels: Tensor
    question: str
    answer: str


def _drawn(canvas: Tensor, shape: str, colour: str, column: int, row: int, radius: int) -> None:
    y, x = torch.meshgrid(torch.arange(SIZE) - row, torch.arange(SIZE) - column, indexing="ij")
    inside = {
        "circle": x**2 + y**2 <= radius**2,
        "square": (x.abs() <= radius) & (y.abs() <= radius),
        "cross": ((x.abs() <= 1) & (y.abs() <= radius)) | ((y.abs() <= 1) & (x.abs() <= radius)),
    }[shape]
    canvas[:, inside] = torch.tensor(COLOURS[colour], dtype=torch.float32)[:, None]


def sample(seed: int) -> Sample:
    """One or two shapes on noise; a description of all of it, or an answer to a question about a part."""
    draw, source = random.Random(seed), torch.Generator().manual_seed(seed)
    canvas = 0.1 * torch.randn(3, SIZE, SIZE, generator=source)
    parts = []
    for side in draw.choice((["left"], ["right"], ["left", "right"])):
        shape, colour = draw.choice(SHAPES), draw.choice(list(COLOURS))
        _drawn(canvas, shape, colour, SIDES[side] + draw.randint(-2, 2), 16 + draw.randint(-6, 6), draw.randint(4, 6))
        parts.append((side, colour, shape))
    told = " and ".join(f"a {colour} {shape} on the {side}" for side, colour, shape in parts)
    kind = draw.random()
    if kind < 0.6:
        return Sample(canvas, "What is in the image?", f"The image shows {told}.")
    if kind < 0.8:
        return Sample(canvas, "How many shapes are there?", f"There is {len(parts)} in the image: {told}.")
    side, colour, shape = draw.choice(parts)
    return Sample(canvas, f"What is on the {side}?", f"On the {side} there is a {colour} {shape}.")
