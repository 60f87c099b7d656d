"""The fixtures of tests/evaluate: test modules and conftest files cannot import one another."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[2] / "evaluate" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("evaluate_conftest", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
kit, source, packed, text = _MODULE.kit, _MODULE.source, _MODULE.packed, _MODULE.text
