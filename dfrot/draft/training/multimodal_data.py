"""Training samples from conversations about images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data import shapes
from dfrot.data.chat import answer_mask
from dfrot.data.jsonl import read_json_lines
from dfrot.draft.training.corpus import is_held_out
from dfrot.errors import InputError
from dfrot.vision.conversations import Row, conversation_row, drawn_conversation, images_in, question
from dfrot.vision.prompts import PromptReader

# Seeds of drawn conversations, apart from those of evaluation and of the reference VLM.
TRAIN_SEED = 20_000_000
HELD_OUT_SEED = shapes.HELD_OUT + 500_000
SPARE = 2  # drawn conversations per wanted sample, because some may be unusable


@dataclass(frozen=True)
class MultimodalSample:
    """A prompt, perhaps with images, and its answer."""

    tokens: list[int]
    """Prompt and answer, image tokens in place."""
    prompt: int
    """Tokens of the prompt."""
    inputs: dict[str, Tensor]
    """The processor's other tensors (pixel_values, image_sizes, ...); empty without images."""
    mask: tuple[bool, ...] | None = None
    """Slots that count, of all tokens; None for all of the answer."""

    def counts(self) -> Tensor:
        """bool [n]: tokens whose slots count; never the last one, whose prediction is not used."""
        counts = torch.zeros(len(self.tokens), dtype=torch.bool)
        counts[self.prompt :] = True if self.mask is None else torch.tensor(self.mask[self.prompt :])
        counts[-1] = False
        return counts


def training_sample(reader: PromptReader, row: Row, seqlen: int) -> MultimodalSample:
    """The sample of a conversation, cut to `seqlen` tokens: the answers behind its last image count. The prompt is
    everything up to that image's question, which the target reads in one pass with all images.

    Raises InputError naming the row where no answer remains."""
    messages, pictures, where = row
    last = max((index for index, message in enumerate(messages) if images_in([message])), default=0)
    prompt_messages = [*messages[:last], *question(messages[last:])]
    prompt, inputs = reader.encode(prompt_messages, pictures, where)

    def encode(part: Sequence[dict[str, Any]], add_generation_prompt: bool) -> list[int]:
        return reader.encode(part, pictures[: images_in(part)], where, add_generation_prompt)[0]

    ids, mask = answer_mask(reader.tokenizer, messages, where, encode)
    if not any(mask):
        raise InputError(
            f"{where}: holds no answer; give one, or let the target write it (`regenerate`)", field="regenerate"
        )
    if len(prompt) + 2 > min(seqlen, len(ids) - 1):
        raise InputError(
            f"{where}: no answer of two tokens within `seqlen` {seqlen}; raise it or remove the line", field="seqlen"
        )
    return MultimodalSample(ids[:seqlen], len(prompt), inputs, tuple(mask[:seqlen]))


def load_multimodal(
    dataset: str, samples: int, held_out: int, make: Callable[[Row], MultimodalSample | None]
) -> tuple[list[MultimodalSample], list[MultimodalSample]]:
    """Training and held-out samples.

    dataset: `shapes`, or a .jsonl whose rows are held out by their hash and read until there are enough. make: from a
    row to its sample, None to leave it out. Raises InputError for a dataset without usable rows."""
    wanted: tuple[int, int] = (samples, held_out)
    sides: tuple[list[MultimodalSample], list[MultimodalSample]] = ([], [])
    for side, read_row in _rows(dataset, wanted):
        if len(sides[side]) < wanted[side]:
            if (sample := make(read_row())) is not None:
                sides[side].append(sample)
        elif len(sides[1 - side]) >= wanted[1 - side]:
            break
    if not sides[0] or not sides[1]:
        raise InputError(f"{dataset}: too few conversations to hold some out by their hash; give at least some dozens")
    return sides


def _rows(dataset: str, wanted: tuple[int, int]) -> Iterator[tuple[int, Callable[[], Row]]]:
    """Of every row its side (0: training, 1: held out) and a function that reads it."""
    if dataset == shapes.NAME:
        for side, first in enumerate((TRAIN_SEED, HELD_OUT_SEED)):
            for seed in range(first, first + SPARE * wanted[side]):
                yield side, functools.partial(drawn_conversation, seed)
        return
    path = Path(dataset)
    for row, where in read_json_lines(path):
        yield int(is_held_out(row)), functools.partial(conversation_row, row, path.parent, where)
