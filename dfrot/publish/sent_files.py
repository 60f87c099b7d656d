"""Which files of a folder are sent: a list of what belongs to a checkpoint, and nothing else."""

from __future__ import annotations

import fnmatch

SENT = (
    "*.safetensors",
    "*.gguf",
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "*.png",
    "*.svg",
    "additional_chat_templates/*.jinja",
)
IGNORED = (".git*", ".git/*", ".cache/*", "*.partial/*", "__pycache__/*", ".DS_Store", "*.lock", "*.incomplete")
"""What the hub's client is told to leave out, too."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
"""Files that can run code where they are read, or weights in formats that nobody asked for."""
LARGEST_TEXT = 64 << 20  # bytes of a file that is searched as text
WEIGHTS = (".safetensors", ".gguf")


def is_sent(name: str) -> bool:
    """Whether a file, by its path in the folder, belongs to what is published."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    patterns = [pattern for pattern in SENT if ("/" in pattern) == (len(parts) > 1)]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_weight(name: str) -> bool:
    """Whether a file holds weights rather than text."""
    return name.endswith(WEIGHTS)
