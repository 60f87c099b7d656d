"""Measuring outliers: one pass over a checkpoint, block by block."""
