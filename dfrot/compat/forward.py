"""Replacing the `forward` of single modules.

Two places need it, and hooks serve neither: the native decoder computes a model's output instead of the modules (a
pre-hook cannot skip the computation), and verification runs a module once per row (a hook sees one call, not several).
A subclass would change `type(module)`, by which transformers and dfq tell modules apart. So an attribute of the
instance shadows the method of its class, as accelerate does it; `torch.nn.Module.__call__` finds it first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

_ATTRIBUTE = "forward"


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let `module(...)` run `forward(module, ...)` for good; the class's own is `type(module).forward`.

    It goes along with copies and pickles of the module, where `forward` is a function of a module's top level: a
    partial call is copied with its module, a bound method would be pickled as an attribute that the class lacks."""
    setattr(module, _ATTRIBUTE, functools.partial(forward, module))


def has_replaced_forward(module: nn.Module) -> bool:
    """Whether calling the module runs something else than its class's `forward`."""
    return _ATTRIBUTE in vars(module)


@contextlib.contextmanager
def wrapped_forwards(
    modules: Sequence[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """While active, each of the modules runs `wrap(its forward)`."""
    before = [(module, vars(module).get(_ATTRIBUTE)) for module in modules]
    for module in modules:
        setattr(module, _ATTRIBUTE, wrap(module.forward))
    try:
        yield
    finally:
        for module, forward in before:
            if forward is None:
                delattr(module, _ATTRIBUTE)
            else:
                setattr(module, _ATTRIBUTE, forward)
