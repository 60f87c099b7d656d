"""Settings of images in prompts."""

from __future__ import annotations

KEEP = 0.75
