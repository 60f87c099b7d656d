"""Conversations about images as token ids and pixels: of a .jsonl, or drawn (`shapes`)."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.data import shapes
from dfrot.data.images import normalized_pixels
from dfrot.data.jsonl import parse_conversation, read_json_lines
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.training.corpus import HELD_OUT_OF_256, answer_mask, template_ids
from dfrot.draft.training.multimodal_source import KEEP, MultimodalSample
from dfrot.errors import InputError, UnsupportedError
from dfrot.generation.prompt import ImageInputs
from dfrot.vision.llava_layout import CONFIG, VisionConfig, has_vision_part
from dfrot.vision.processor import Processor

TRAIN, JUDGE = 20_000_000, shapes.HELD_OUT + 500_000  # seeds of a draft's samples, apart from the ones that others use


Row = tuple[list[dict[str, Any]], list[Tensor], str]
"""Messages, pictures uint8 [H, W, 3], where they stand."""


@dataclass(frozen=True)
class PromptWithImages:
    """A prompt: token ids with image tokens in place, and its images."""

    ids: list[int]
    images: ImageInputs | None = None


class LlavaPromptReader:
    """The tokenizer of a model that sees, and what its vision part needs to know of prompts."""

    def __init__(self, tokenizer: Any, config: VisionConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def open(cls, model: Path) -> LlavaPromptReader:
        """Of a folder with a vision part."""
        return cls(load_tokenizer(model), VisionConfig.read(model / CONFIG))

    @property
    def image_token(self) -> int:
        """The id that stands for image embeddings in a prompt."""
        return self.config.image_token

    def expand(self, ids: list[int]) -> list[int]:
        """Every image token becomes as many as an image has patches."""
        one = self.config.image_token
        return [token for given in ids for token in ([one] * self.config.per_image if given == one else [given])]

    def seen(
        self, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Tensor], where: str, ask: bool = True
    ) -> tuple[list[int], dict[str, Any]]:
        """Ids of a conversation, image tokens in place, and what the model takes of its pictures uint8 [H, W, 3]. ask:
        ready for an answer. Raises InputError naming `where`."""
        try:
            short = template_ids(self.tokenizer, messages, ask)
        except Exception as error:  # a template raises whatever its author liked
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{where}: refused by the model's chat template ({reason})") from None
        ids = self.expand(short)
        self.check(ids, len(pictures), where)
        if not pictures:
            return ids, {}
        return ids, {"pixel_values": torch.stack([normalized_pixels(one, self.config.size) for one in pictures])}

    def check(self, ids: Sequence[int], images: int, where: str) -> None:
        """Raise InputError unless these ids have the places of that many images."""
        found, of = ids.count(self.config.image_token), images * self.config.per_image
        if found != of:
            raise InputError(
                f"{where}: {found} image tokens in the prompt, {of} for {images} images; the text must not name the "
                "token, and the chat template must place every image"
            )


PromptReader = LlavaPromptReader | Processor
"""What makes ids and tensors of conversations about pictures: for our layout, or as a model's makers publish it."""


def find_prompt_reader(model: Path) -> PromptReader | None:
    """None for a model that takes no images. Raises InputError where its processor is missing."""
    if has_vision_part(model):
        return LlavaPromptReader.open(model)
    return None if describe(Checkpoint.open(model).config).wrapper is None else Processor.open(model)


def prompt_reader(model: Path) -> PromptReader:
    """Raises UnsupportedError for a model that takes no images, InputError where its processor is missing."""
    found = find_prompt_reader(model)
    if found is None:
        raise UnsupportedError(f"{model}: takes no images; leave them out, or give a model that sees")
    return found


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


def question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages before the first answer."""
    return list(itertools.takewhile(lambda message: message.get("role") != "assistant", messages))


def first_question(reader: PromptReader, row: Row) -> tuple[list[int], dict[str, Any]]:
    """Ids of what comes before the first answer, and what the model takes of the images there, if any."""
    messages, pictures, where = row
    first = question(messages)
    return reader.seen(first, pictures[: images_in(first)], where)


def images_in(messages: Sequence[dict[str, Any]]) -> int:
    """Places of images in messages whose contents are texts or lists of parts."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for parts in lists for part in parts)


def has_images(dataset: str) -> bool:
    """Whether rows of a dataset hold images: `shapes`, or a .jsonl some row of which does."""
    path = Path(dataset)
    if dataset == shapes.NAME or path.suffix != ".jsonl" or not path.is_file():
        return dataset == shapes.NAME
    conversation_row = path.stat()
    return _holds_images(path, conversation_row.st_mtime_ns, conversation_row.st_size)


@functools.lru_cache(maxsize=8)
def _holds_images(path: Path, *_: int) -> bool:
    """Read once for all who ask, as long as the file's time and size stay."""
    return any("images" in row for row, _ in read_json_lines(path))


def drawn_conversation(seed: int) -> Row:
    """A drawn picture with a question and its answer."""
    one = shapes.sample(seed)
    first_question = [{"type": "image"}, {"type": "text", "text": one.question}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": first_question},
        {"role": "assistant", "content": one.answer},
    ]
    return messages, [one.picture], f"{shapes.NAME} {seed}"


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


def conversation_row(row: dict[str, Any], root: Path, where: str) -> Row:
    """A row of a .jsonl."""
    return (*parse_conversation(row, root, where), where)


def load_questions(dataset: str, reader: PromptReader, count: int, keep: float = KEEP) -> list[PromptWithImages]:
    """Prompts: what comes before the first answer of drawn pictures, or of the rows of a .jsonl."""
    found = []
    if dataset == shapes.NAME:
        rows: Iterator[Row] = (drawn_conversation(seed) for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + count))
    else:
        rows = (conversation_row(row, Path(dataset).parent, where) for row, where in read_json_lines(Path(dataset)))
    for row in itertools.islice(rows, count):
        ids, given = first_question(reader, row)
        found.append(PromptWithImages(ids, ImageInputs(given, keep) if given else None))
    if not found:
        raise InputError(f"{dataset}: holds no prompts")
    return found
