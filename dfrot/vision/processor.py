"""The processor of a VLM as its makers publish it beside the weights: chat template, tokenizer, image preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.errors import InputError, reason_of
from dfrot.inputs import open_model
from dfrot.inputs.fingerprint import PROCESSOR_FILES


class Processor:
    """Encodes conversations with images through a transformers processor."""

    def __init__(self, processor: Any, image_token: int) -> None:
        """image_token: the token id that stands for image embeddings in a prompt."""
        self.processor, self.tokenizer, self.image_token = processor, processor.tokenizer, image_token

    @classmethod
    def open(cls, folder: Path) -> Processor:
        """The processor of a checkpoint's folder. Raises InputError where it is missing or cannot be read."""
        from transformers import AutoProcessor

        if not any((folder / name).is_file() for name in PROCESSOR_FILES):
            raise InputError(f"{folder}: neither {' nor '.join(PROCESSOR_FILES)}; copy them from the model")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of many kinds, all of which mean that the files are unusable
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{folder}: its processor was refused by transformers ({reason})") from None
        config = open_model(folder).config
        token = config.get("image_token_id", config.get("image_token_index"))
        if not isinstance(token, int) or not hasattr(processor, "tokenizer"):
            raise InputError(f"{folder}: config.json names no image_token_id; restore it")
        return cls(processor, token)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Tensor],
        where: str,
        add_generation_prompt: bool = True,
    ) -> tuple[list[int], dict[str, Any]]:
        """Token ids of a conversation, and the processor's other tensors, empty without pictures.

        messages: role and content, whose parts {"type": "image"} are the pictures uint8 [H, W, 3], in order.
        add_generation_prompt: end ready for the assistant's turn. Raises InputError naming `where`."""
        image_token_text = self.tokenizer.convert_ids_to_tokens(self.image_token)
        if any(image_token_text in text for text in _texts(messages)):
            raise InputError(f"{where}: its text names {image_token_text!r}, the token of images; leave it out")
        try:
            text = self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
            images = [picture.numpy() for picture in pictures] or None
            bos = self.tokenizer.bos_token  # some templates write it, others leave it to the tokenizer
            has_bos = bos is not None and text.startswith(bos)
            encoded = self.processor(text=[text], images=images, add_special_tokens=not has_bos, return_tensors="pt")
        except Exception as error:  # templates and processors raise whatever their authors chose
            reason = reason_of(error)
            raise InputError(f"{where}: refused by the model's processor ({reason})") from None
        tensors = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
        # without images nothing remains but token types, which are those of text
        return encoded["input_ids"][0].tolist(), tensors if images else {}

    def check(self, ids: Sequence[int], images: int, where: str) -> None:
        """Raise InputError for a prompt without images that holds their token."""
        if not images and self.image_token in ids:
            raise InputError(f"{where}: holds the token of images but no image; leave the token out")


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text parts of all messages."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [str(part.get("text", "")) for part in parts if part.get("type") == "text"]
    return texts
