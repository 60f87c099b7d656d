"""The reference model that ships in the package: an ordinary Hugging Face folder, described in MODEL_CARD.md."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the model: config.json, model.safetensors, tokenizer.json and so on."""
    return Path(__file__).resolve().parent
