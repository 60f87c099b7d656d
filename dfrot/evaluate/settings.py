"""Settings of evaluations."""

from __future__ import annotations

LEVEL = 0.95  # of confidence intervals
