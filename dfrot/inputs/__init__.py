"""Checkpoints of other formats as inputs: opened like a 16-bit folder, dequantized when read."""
