"""Importing a module of ours right after a module of another package was loaded.

`import dfrot` has to make transformers know `quant_method: dfq`, whichever of the two is imported first. Importing
transformers for that would cost seconds. Instead a finder waits on `sys.meta_path` for the module that holds the table
of quantizers, lets the ordinary finders load it, imports our plug-in and removes itself. Nothing is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

QUANTIZER_TABLES = "transformers.quantizers.auto"
"""The module of transformers that holds the tables of quantizers: plug-ins can register once it is loaded."""

PEFT_LORA = "peft.tuners.lora.model"
"""The module of peft that chooses a class for every linear that gets a LoRA adapter."""


class _ImportTrigger(MetaPathFinder):
    """Finds nothing itself; arranges that `plugin` is imported right after `trigger` was executed."""

    def __init__(self, trigger: str, plugin: str) -> None:
        self.trigger, self.plugin = trigger, plugin

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.trigger:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _ImportTrigger) else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._extend_loader(spec)
                return spec
        return None

    def _extend_loader(self, spec: ModuleSpec) -> None:
        """Append the import of the plug-in to this spec's loading; its loader object serves this one module."""
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == self.trigger:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                import_module(self.plugin)

        setattr(loader, "exec_module", exec_module)  # noqa: B010  (mypy: methods cannot be assigned)


def pending(trigger: str) -> bool:
    """Whether an import is still waiting for module `trigger` to be loaded."""
    return any(isinstance(finder, _ImportTrigger) and finder.trigger == trigger for finder in sys.meta_path)


def import_after(trigger: str, plugin: str) -> None:
    """Import module `plugin` now if module `trigger` is loaded, otherwise as soon as it is.

    Calling it again changes nothing. `plugin` may itself be what imports `trigger`: it is then found half imported in
    `sys.modules` and left to finish, so it must do its work at module level.
    """
    if trigger in sys.modules:
        import_module(plugin)
    elif not pending(trigger):
        sys.meta_path.insert(0, _ImportTrigger(trigger, plugin))
