"""Making transformers know `quant_method: dfq`, whichever of the two packages is imported first.

transformers keeps a table of quantizers in `transformers.quantizers.auto`. If that module is loaded, our entry is
added at once. If not, importing transformers here would cost seconds for nothing: instead a finder waits on
`sys.meta_path` for that one module, lets the ordinary finders load it, adds the entry and leaves. Nothing of
transformers is replaced or wrapped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TARGET = "transformers.quantizers.auto"


def _register() -> None:
    from dfrot.runtime.quantizer_plugin import register

    register()


class _AfterImport(MetaPathFinder):
    """Finds nothing itself; arranges that our entry is added right after TARGET was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        for finder in sys.meta_path:
            found = None if isinstance(finder, _AfterImport) else finder.find_spec(fullname, path, target)
            if found is not None and found.loader is not None:
                _follow(found)
                return found
        return None


def _follow(spec: ModuleSpec) -> None:
    """Append the registration to this spec's loading (its loader object serves one module only)."""
    loader = spec.loader
    assert loader is not None
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == TARGET:
            uninstall()
            _register()

    setattr(loader, "exec_module", exec_module)  # noqa: B010  (mypy: methods cannot be assigned)


def uninstall() -> None:
    """Remove the waiting finder, if any."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]


def install() -> None:
    """Register now or as soon as transformers' table exists. Calling it again changes nothing."""
    if TARGET in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
