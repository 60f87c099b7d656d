"""Shared machines stall: no per-example deadline for the property tests of this folder."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
