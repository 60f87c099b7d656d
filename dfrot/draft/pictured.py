"""Conversations about images as token ids and pixels: of a .jsonl, or drawn (`shapes`)."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.calib import shapes
from dfrot.draft.data import HELD_OUT_OF_256, answer_mask, template_ids
from dfrot.draft.prompt import Images
from dfrot.draft.rows import conversation, first_row, read_rows
from dfrot.draft.visual import KEEP, VisualSample
from dfrot.errors import InputError, UnsupportedError
from dfrot.hf.pixels import pixels
from dfrot.hf.tokens import load_tokenizer
from dfrot.hf.vision import CONFIG, VisionConfig, sees

TRAIN, JUDGE = 20_000_000, shapes.HELD_OUT + 500_000  # seeds of a draft's samples, apart from the ones that others use


Row = tuple[list[dict[str, Any]], Tensor, str]
"""Messages, pixels, where they stand."""


@dataclass(frozen=True)
class Asked:
    """A prompt: token ids with image tokens in place, and its images."""

    ids: list[int]
    images: Images | None = None


class Sighted:
    """The tokenizer of a model that sees, and what its vision part needs to know of prompts."""

    def __init__(self, tokenizer: Any, config: VisionConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def open(cls, model: Path) -> Sighted:
        """Raises UnsupportedError for a model without a vision part."""
        if not sees(model):
            raise UnsupportedError(f"{model}: takes no images (it has no {CONFIG}); leave them out")
        return cls(load_tokenizer(model), VisionConfig.read(model / CONFIG))

    def expand(self, ids: list[int]) -> list[int]:
        """Every image token becomes as many as an image has patches."""
        one = self.config.image_token
        return [token for given in ids for token in ([one] * self.config.per_image if given == one else [given])]

    def prompt(self, messages: Sequence[dict[str, Any]], images: int, where: str) -> list[int]:
        """Ids of a conversation with that many images, ready for an answer. Raises InputError naming `where`."""
        try:
            ids = template_ids(self.tokenizer, messages, True)
        except Exception as error:  # a template raises whatever its author liked
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{where}: refused by the model's chat template ({reason})") from None
        found = self.expand(ids)
        self.check(found, images, where)
        return found

    def seen(
        self, messages: Sequence[dict[str, Any]], pictures: Sequence[Tensor], where: str
    ) -> tuple[list[int], dict[str, Any]]:
        """Ids of a conversation, ready for an answer, and what the model takes of its pictures uint8 [H, W, 3]."""
        ids = self.prompt(messages, len(pictures), where)
        return ids, {"pixel_values": torch.stack([pixels(one, self.config.size) for one in pictures])}

    def check(self, ids: Sequence[int], images: int, where: str) -> None:
        """Raise InputError unless these ids have the places of that many images."""
        found, of = ids.count(self.config.image_token), images * self.config.per_image
        if found != of:
            raise InputError(
                f"{where}: {found} image tokens in the prompt, {of} for {images} images; the text must not name the "
                "token, and the chat template must place every image"
            )

    def sample(self, row: Row, seqlen: int) -> VisualSample:
        """What a draft learns from a conversation: at most `seqlen` tokens, all images before the first answer. Raises
        InputError naming the row."""
        messages, seen, where = row
        ids, mask = answer_mask(self.tokenizer, messages, where, self.expand)
        if not any(mask):
            raise InputError(f"{where}: holds no answer; give one, or let the target write it (--regenerate)")
        self.check(ids, len(seen), where)
        begin = mask.index(True)
        if self.config.image_token in ids[begin:]:
            raise InputError(f"{where}: an image behind the first answer; give one question per row")
        if begin + 2 > min(seqlen, len(ids) - 1):
            raise InputError(f"{where}: no answer of two tokens within --seqlen {seqlen}; raise it or remove the line")
        return VisualSample(ids[:seqlen], begin, {"pixel_values": seen}, tuple(mask[:seqlen]))


def pictured(dataset: str) -> bool:
    """Whether the rows of a dataset hold images: `shapes`, or a .jsonl whose first row does."""
    path = Path(dataset)
    return dataset == shapes.NAME or (path.suffix == ".jsonl" and path.is_file() and "images" in first_row(path))


def drawn(seed: int, size: int) -> Row:
    """A drawn picture with a question and its answer."""
    one = shapes.sample(seed)
    asked = [{"type": "image"}, {"type": "text", "text": one.question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}, {"role": "assistant", "content": one.answer}]
    return messages, pixels(one.picture, size)[None], f"{shapes.NAME} {seed}"


def load_pictured(
    dataset: str, size: int, samples: int, held_out: int, make: Callable[[Row], VisualSample | None]
) -> tuple[list[VisualSample], list[VisualSample]]:
    """Training and held-out samples, each made from its row (or left out, None); rows of a .jsonl are held out by their
    hash, and read until there are enough. Raises InputError for a dataset without usable rows."""
    wanted: tuple[int, int] = (samples, held_out)
    sides: tuple[list[VisualSample], list[VisualSample]] = ([], [])
    for side, row in _rows(dataset, size, wanted):
        if len(sides[side]) < wanted[side]:
            if (made := make(row())) is not None:
                sides[side].append(made)
        elif len(sides[1 - side]) >= wanted[1 - side]:
            break
    if not sides[0] or not sides[1]:
        raise InputError(f"{dataset}: too few conversations to hold some out by their hash; give at least some dozens")
    return sides


def _rows(dataset: str, size: int, wanted: tuple[int, int]) -> Iterator[tuple[int, Callable[[], Row]]]:
    """The side (1: held out) of every row and what reads it."""
    if dataset == shapes.NAME:
        for side, first in enumerate((TRAIN, JUDGE)):
            for seed in range(first, first + 2 * wanted[side]):  # some may be left out
                yield side, functools.partial(drawn, seed, size)
        return
    path = Path(dataset)
    for row, where in read_rows(path):
        side = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()[0] < HELD_OUT_OF_256
        yield int(side), functools.partial(told, row, path.parent, size, where)


def told(row: dict[str, Any], root: Path, size: int, where: str) -> Row:
    """A row of a .jsonl."""
    messages, seen = conversation(row, root, size, where)
    return messages, seen, where


def load_questions(dataset: str, sighted: Sighted, count: int, keep: float = KEEP) -> list[Asked]:
    """Prompts: what comes before the first answer of drawn pictures, or of the rows of a .jsonl."""
    size, found = sighted.config.size, []
    if dataset == shapes.NAME:
        rows: Iterator[Row] = (drawn(seed, size) for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + count))
    else:
        root = Path(dataset).parent
        rows = (told(row, root, size, where) for row, where in read_rows(Path(dataset)))
    for messages, seen, where in itertools.islice(rows, count):
        found.append(Asked(sighted.prompt(question(messages), len(seen), where), Images({"pixel_values": seen}, keep)))
    if not found:
        raise InputError(f"{dataset}: holds no prompts")
    return found


def question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages before the first answer."""
    return list(itertools.takewhile(lambda message: message.get("role") != "assistant", messages))
