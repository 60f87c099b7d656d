"""Conversations about images as token ids and pixels: of a .jsonl, or drawn (`shapes`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.data import shapes
from dfrot.data.chat import template_ids
from dfrot.data.images import normalized_pixels
from dfrot.data.jsonl import read_json_lines
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, UnsupportedError
from dfrot.vision.conversations import Row, conversation_row, drawn_conversation, images_in, question
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.llava_layout import CONFIG, VisionConfig, has_vision_part
from dfrot.vision.processor import Processor
from dfrot.vision.settings import KEEP


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


def first_question(reader: PromptReader, row: Row) -> tuple[list[int], dict[str, Any]]:
    """Ids of what comes before the first answer, and what the model takes of the images there, if any."""
    messages, pictures, where = row
    first = question(messages)
    return reader.seen(first, pictures[: images_in(first)], where)


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
