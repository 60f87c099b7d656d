"""Ways to remove outliers, one module each behind one interface (`base.Fix`)."""

from __future__ import annotations

import difflib

from dfrot.errors import InputError
from dfrot.outliers.fixes.base import Change, Context, Fix
from dfrot.outliers.fixes.gains import GainsFix
from dfrot.outliers.fixes.massive import MassiveFix
from dfrot.outliers.fixes.prefix import PrefixFix
from dfrot.outliers.fixes.query import QueryFix

FIXES: dict[str, Fix] = {fix.name: fix for fix in (GainsFix(), MassiveFix(), QueryFix(), PrefixFix())}


def fix_names() -> list[str]:
    """Every `NAME:MODE`."""
    return [f"{fix.name}:{mode}" for fix in FIXES.values() for mode in fix.modes]


def parse_fix(text: str) -> tuple[Fix, str]:
    """The fix and mode of `massive:mean`, or of a bare name with its first mode. Raises InputError."""
    name, _, mode = text.partition(":")
    fix = FIXES.get(name)
    if fix is None or (mode and mode not in fix.modes):
        near = difflib.get_close_matches(text, fix_names(), 1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        known = ", ".join(fix_names())
        raise InputError(f"`fixes={text}`: unknown; choose of {known}{hint}", field="fixes")
    return fix, mode or fix.modes[0]


__all__ = ["FIXES", "Change", "Context", "Fix", "fix_names", "parse_fix"]
