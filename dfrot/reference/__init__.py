"""The reference model that ships in the package: a plain Hugging Face folder, see MODEL_CARD.md beside this file."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Return the folder of the model: config.json, model.safetensors, tokenizer.json and their companions."""
    return Path(__file__).resolve().parent
