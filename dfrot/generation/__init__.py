"""Generating text with a loaded checkpoint: plainly, or speculatively with the same result."""
