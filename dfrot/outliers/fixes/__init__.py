"""Ways to remove outliers, one small module each behind one interface (`base.Fix`)."""

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
    """`massive:mean`, or the bare name for a fix's first mode. Raises InputError."""
    name, _, mode = text.partition(":")
    fix = FIXES.get(name)
    if fix is None or (mode and mode not in fix.modes):
        near = difflib.get_close_matches(text, fix_names(), 1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise InputError(f"--fix {text}: unknown; choose of {', '.join(fix_names())}{hint}")
    return fix, mode or fix.modes[0]


__all__ = ["FIXES", "Change", "Context", "Fix", "names", "parse"]
