"""The processor of a model that sees, as its makers publish it beside the weights: chat template, tokenizer, images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.fingerprint import PROCESSOR_FILES


class Processor:
    """tokenizer: the text half. image_token: the id that stands for image embeddings in a prompt."""

    def __init__(self, processor: Any, image_token: int) -> None:
        self.processor, self.tokenizer, self.image_token = processor, processor.tokenizer, image_token

    @classmethod
    def open(cls, folder: Path) -> Processor:
        """Raises InputError, in one line, for a folder without a processor or with one that cannot be read."""
        from transformers import AutoProcessor

        if not any((folder / name).is_file() for name in PROCESSOR_FILES):
            raise InputError(f"{folder}: neither {' nor '.join(PROCESSOR_FILES)}; copy them from the model")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here; all mean that the files are unusable
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{folder}: its processor was refused by transformers ({first})") from None
        config = Checkpoint.open(folder).config
        token = config.get("image_token_id", config.get("image_token_index"))
        if not isinstance(token, int) or not hasattr(found, "tokenizer"):
            raise InputError(f"{folder}: config.json names no image_token_id; restore it")
        return cls(found, token)

    def seen(
        self, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Tensor], where: str, ask: bool = True
    ) -> tuple[list[int], dict[str, Any]]:
        """Token ids of a conversation and the other tensors of pictures uint8 [H, W, 3], in the order of their parts
        {"type": "image"}. ask: ready for an answer. Raises InputError naming `where`."""
        mark = self.tokenizer.convert_ids_to_tokens(self.image_token)
        if any(mark in text for text in _texts(messages)):
            raise InputError(f"{where}: its text names {mark!r}, the token of images; leave it out")
        try:
            text = self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
            images = [picture.numpy() for picture in pictures] or None
            bos = self.tokenizer.bos_token  # some templates write it, others leave it to the tokenizer
            begun = bos is not None and text.startswith(bos)
            made = self.processor(text=[text], images=images, add_special_tokens=not begun, return_tensors="pt")
        except Exception as error:  # templates and processors raise whatever their authors liked
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{where}: refused by the model's processor ({reason})") from None
        given = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        given = given if images else {}  # what kinds text is of is no news
        return made["input_ids"][0].tolist(), given

    def check(self, ids: Sequence[int], images: int, where: str) -> None:
        """Raise InputError for a prompt without images that holds their token."""
        if not images and self.image_token in ids:
            raise InputError(f"{where}: holds the token of images but no image; leave the token out")


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is text in the messages of a conversation."""
    found: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [str(part.get("text", "")) for part in parts if part.get("type") == "text"]
    return found
