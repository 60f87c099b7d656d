"""Checkpoints for other engines: what each can hold (targets, fit), how it is written, and proof that it is right."""
