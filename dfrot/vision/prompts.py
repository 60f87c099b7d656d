"""Prompts with images as token ids and tensors, for our layout and for VLMs as their makers publish them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.data import shapes
from dfrot.data.chat import template_ids
from dfrot.data.images import normalized_pixels
from dfrot.data.jsonl import read_json_lines
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, UnsupportedError, reason_of
from dfrot.inputs import open_model
from dfrot.vision.conversations import Row, conversation_row, drawn_conversation, images_in, question
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.llava_layout import CONFIG, VisionConfig, has_vision_part
from dfrot.vision.processor import Processor
from dfrot.vision.settings import KEEP


@dataclass(frozen=True)
class PromptWithImages:
    """A prompt and its images, if it has any."""

    ids: list[int]
    """Token ids, image tokens in place."""
    images: ImageInputs | None = None


class LlavaPromptReader:
    """Encodes conversations for a language model with a vision part in our layout."""

    def __init__(self, tokenizer: Any, config: VisionConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def open(cls, model: Path) -> LlavaPromptReader:
        """Of a checkpoint's folder with a vision part."""
        return cls(load_tokenizer(model), VisionConfig.read(model / CONFIG))

    @property
    def image_token(self) -> int:
        """The token id that stands for image embeddings in a prompt."""
        return self.config.image_token

    def expand(self, ids: list[int]) -> list[int]:
        """ids with every image token repeated once per patch of an image."""
        image_tokens = [self.config.image_token] * self.config.per_image
        return [token for id_ in ids for token in (image_tokens if id_ == self.config.image_token else [id_])]

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Tensor],
        where: str,
        add_generation_prompt: bool = True,
    ) -> tuple[list[int], dict[str, Any]]:
        """Token ids of a conversation, image tokens in place, and the tensors of its pictures uint8 [H, W, 3], empty
        without pictures. add_generation_prompt: end ready for the assistant's turn. Raises InputError naming `where`.
        """
        try:
            ids = self.expand(template_ids(self.tokenizer, messages, add_generation_prompt))
        except Exception as error:  # templates raise whatever their authors chose
            reason = reason_of(error)
            raise InputError(f"{where}: refused by the model's chat template ({reason})") from None
        self.check(ids, len(pictures), where)
        if not pictures:
            return ids, {}
        return ids, {
            "pixel_values": torch.stack([normalized_pixels(picture, self.config.size) for picture in pictures]),
        }

    def check(self, ids: Sequence[int], images: int, where: str) -> None:
        """Raise InputError unless the ids hold exactly the image tokens of that many images."""
        count, expected = ids.count(self.config.image_token), images * self.config.per_image
        if count != expected:
            raise InputError(
                f"{where}: {count} image tokens in the prompt, {expected} for {images} images; the text must not name "
                "the token, and the chat template must place every image"
            )


PromptReader = LlavaPromptReader | Processor
"""Encodes conversations with images."""


def find_prompt_reader(model: Path) -> PromptReader | None:
    """None for a model that takes no images. Raises InputError where its processor is missing."""
    if has_vision_part(model):
        return LlavaPromptReader.open(model)
    return None if describe(open_model(model).config).wrapper is None else Processor.open(model)


def prompt_reader(model: Path) -> PromptReader:
    """Raises UnsupportedError for a model that takes no images, InputError where its processor is missing."""
    reader = find_prompt_reader(model)
    if reader is None:
        raise UnsupportedError(f"{model}: takes no images; leave them out, or give a VLM")
    return reader


def first_question(reader: PromptReader, row: Row) -> tuple[list[int], dict[str, Any]]:
    """Token ids of the messages before the first answer, and the tensors of the images there."""
    messages, pictures, where = row
    before_answer = question(messages)
    return reader.encode(before_answer, pictures[: images_in(before_answer)], where)


def load_questions(dataset: str, reader: PromptReader, count: int, keep: float = KEEP) -> list[PromptWithImages]:
    """Prompts for evaluation: the messages before the first answer, of held-out drawn pictures (`shapes`) or of the
    first rows of a .jsonl. keep: share of image tokens that the draft gets. Raises InputError without rows."""
    prompts = []
    if dataset == shapes.NAME:
        rows: Iterator[Row] = (drawn_conversation(seed) for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + count))
    else:
        rows = (conversation_row(row, Path(dataset).parent, where) for row, where in read_json_lines(Path(dataset)))
    for row in itertools.islice(rows, count):
        ids, tensors = first_question(reader, row)
        prompts.append(PromptWithImages(ids, ImageInputs(tensors, keep) if tensors else None))
    if not prompts:
        raise InputError(f"{dataset}: holds no prompts")
    return prompts
