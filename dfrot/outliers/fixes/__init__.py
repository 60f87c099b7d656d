"""Ways to remove outliers, one module each behind one interface (`base.Fix`)."""

from __future__ import annotations

from dfrot.outliers.fixes.base import Change, Context, Fix
from dfrot.outliers.fixes.gains import GainsFix
from dfrot.outliers.fixes.massive import MassiveFix
from dfrot.outliers.fixes.prefix import PrefixFix
from dfrot.outliers.fixes.query import QueryFix
from dfrot.settings import choose_mode, mode_names

FIXES: dict[str, Fix] = {fix.name: fix for fix in (GainsFix(), MassiveFix(), QueryFix(), PrefixFix())}


def fix_names() -> list[str]:
    """Every `NAME:MODE`."""
    return mode_names(FIXES)


def parse_fix(text: str) -> tuple[Fix, str]:
    """The fix and mode of `massive:mean`, or of a bare name with its first mode. Raises InputError."""
    return choose_mode("fixes", text, FIXES)


__all__ = ["FIXES", "Change", "Context", "Fix", "fix_names", "parse_fix"]
