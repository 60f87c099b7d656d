"""Models as other tools left them, read as 16-bit checkpoints: `open_model`, and a view for each quantized format."""

from __future__ import annotations

from dfrot.inputs.dense_view import DenseTensor, DequantizedCheckpoint
from dfrot.inputs.open_model import open_described_model, open_model

__all__ = ["DenseTensor", "DequantizedCheckpoint", "open_described_model", "open_model"]
