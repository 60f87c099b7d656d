"""Putting checkpoints on the hub: the model card, the checks before the upload, the upload."""
