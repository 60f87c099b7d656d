"""multimodal_data"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dfrot.data import shapes
from dfrot.data.chat import answer_mask
from dfrot.data.jsonl import read_json_lines
from dfrot.draft.training.corpus import HELD_OUT_OF_256
from dfrot.draft.training.multimodal_source import MultimodalSample
from dfrot.errors import InputError
from dfrot.vision.conversations import Row, conversation_row, drawn_conversation, images_in, question
from dfrot.vision.prompts import PromptReader

TRAIN, JUDGE = 20_000_000, shapes.HELD_OUT + 500_000  # seeds of a draft's samples, apart from the ones that others use


def training_sample(reader: PromptReader, row: Row, seqlen: int) -> MultimodalSample:
    """What a draft learns from a conversation of at most `seqlen` tokens: the answers behind its last image, whose
    question the target reads in one pass with all images. Raises InputError naming the row."""
    messages, pictures, where = row
    last = max((place for place, one in enumerate(messages) if images_in([one])), default=0)
    first = [*messages[:last], *question(messages[last:])]
    prompt, given = reader.seen(first, pictures, where)

    def encode(_: Any, some: Sequence[dict[str, Any]], ask: bool) -> list[int]:
        return reader.seen(some, pictures[: images_in(some)], where, ask)[0]

    ids, mask = answer_mask(reader.tokenizer, messages, where, encode)
    if not any(mask):
        raise InputError(f"{where}: holds no answer; give one, or let the target write it (--regenerate)")
    begin = len(prompt)
    if begin + 2 > min(seqlen, len(ids) - 1):
        raise InputError(f"{where}: no answer of two tokens within --seqlen {seqlen}; raise it or remove the line")
    return MultimodalSample(ids[:seqlen], begin, given, tuple(mask[:seqlen]))


def load_multimodal(
    dataset: str, samples: int, held_out: int, make: Callable[[Row], MultimodalSample | None]
) -> tuple[list[MultimodalSample], list[MultimodalSample]]:
    """Training and held-out samples, each made from its row (or left out, None); rows of a .jsonl are held out by their
    hash, and read until there are enough. Raises InputError for a dataset without usable rows."""
    wanted: tuple[int, int] = (samples, held_out)
    sides: tuple[list[MultimodalSample], list[MultimodalSample]] = ([], [])
    for side, row in _rows(dataset, wanted):
        if len(sides[side]) < wanted[side]:
            if (made := make(row())) is not None:
                sides[side].append(made)
        elif len(sides[1 - side]) >= wanted[1 - side]:
            break
    if not sides[0] or not sides[1]:
        raise InputError(f"{dataset}: too few conversations to hold some out by their hash; give at least some dozens")
    return sides


def _rows(dataset: str, wanted: tuple[int, int]) -> Iterator[tuple[int, Callable[[], Row]]]:
    """The side (1: held out) of every row and what reads it."""
    if dataset == shapes.NAME:
        for side, first in enumerate((TRAIN, JUDGE)):
            for seed in range(first, first + 2 * wanted[side]):  # some may be left out
                yield side, functools.partial(drawn_conversation, seed)
        return
    path = Path(dataset)
    for row, where in read_json_lines(path):
        side = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()[0] < HELD_OUT_OF_256
        yield int(side), functools.partial(conversation_row, row, path.parent, where)
