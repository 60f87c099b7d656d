"""A synthetic data set: images of shapes and short words, with questions and answers, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

NAME = "shapes"
HELD_OUT = 1_000_000  # seeds from here on are held out from training
SIZE = 32
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 230, 30),
    "blue": (30, 30, 230),
    "yellow": (230, 230, 30),
    "white": (230, 230, 230),
}
SHAPES = ("circle", "square", "cross")
WORDS = ("cat", "dog", "sun", "map")
SIDES = {"left": 8, "right": 24}
COUNTS = ("none", "one", "two")
# 3 x 5 dots per letter, rows from top to bottom
_LETTERS = {
    "a": "010101111101101", "c": "011100100100011", "d": "110101101101110", "g": "011100101101011",
    "m": "101111111101101", "n": "110101101101101", "o": "010101101101010", "p": "110101110100100",
    "s": "011100010001110", "t": "111010010010010", "u": "101101101101111",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """An image with a question and its answer."""

    picture: Tensor
    """uint8 [SIZE, SIZE, 3]."""
    question: str
    """About the whole image, the number of objects, or one side."""
    answer: str
    """In one sentence."""
    things: tuple[tuple[str, str, str], ...]
    """The objects in the image: (side, colour, shape or word)."""


def _ink(thing: str, column: int, row: int, radius: int) -> Tensor:
    """bool [SIZE, SIZE]: the pixels that a shape or word at (column, row) covers; radius: half of a shape's extent."""
    y, x = torch.meshgrid(torch.arange(SIZE) - row, torch.arange(SIZE) - column, indexing="ij")
    if thing == "circle":
        return x**2 + y**2 <= radius**2
    if thing == "square":
        return (x.abs() <= radius) & (y.abs() <= radius)
    if thing == "cross":
        return ((x.abs() <= 1) & (y.abs() <= radius)) | ((y.abs() <= 1) & (x.abs() <= radius))
    ink = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for place, letter in enumerate(thing):
        dots = torch.tensor([dot == "1" for dot in _LETTERS[letter]]).view(5, 3)
        left = column - 5 + 4 * place
        ink[row - 2 : row + 3, left : left + 3] = dots
    return ink


def sample(seed: int) -> Sample:
    """The sample of a seed: one or two objects on noise, with a question about all of them or about a part."""
    draw, source = random.Random(seed), torch.Generator().manual_seed(seed)
    canvas = 128 + 12 * torch.randn(SIZE, SIZE, 3, generator=source)
    things = []
    for side in draw.choice((["left"], ["right"], ["left", "right"])):
        thing, colour = draw.choice(SHAPES if draw.random() < 0.7 else WORDS), draw.choice(list(COLOURS))
        column, row = SIDES[side] + draw.randint(-2, 2), SIZE // 2 + draw.randint(-6, 6)
        canvas[_ink(thing, column, row, draw.randint(4, 6))] = torch.tensor(COLOURS[colour], dtype=torch.float32)
        things.append((side, colour, thing))
    description = " and ".join(f"{_phrase(colour, thing)} on the {side}" for side, colour, thing in things)
    kind = draw.random()
    if kind < 0.6:
        question, answer = "What is in the image?", f"The image shows {description}."
    elif kind < 0.8:
        count = len(things)
        question = "How many things are in the image?"
        answer = f"There {'is' if count == 1 else 'are'} {COUNTS[count]}: {description}."
    else:
        side, colour, thing = draw.choice(things)
        question, answer = f"What is on the {side}?", f"On the {side} there is {_phrase(colour, thing)}."
    picture = canvas.round().clamp(0, 255).to(torch.uint8)
    return Sample(picture, question, answer, tuple(things))


def _phrase(colour: str, thing: str) -> str:
    """How an answer names an object."""
    return f"a {colour} {thing}" if thing in SHAPES else f"the word {thing} in {colour}"
