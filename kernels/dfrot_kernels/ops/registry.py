"""How an op reaches torch: its description, and the registration of what serves it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dfrot_kernels import native

NAMESPACE = "dfq"
_Library: Any = torch.library.Library  # untyped in torch
library = _Library(NAMESPACE, "DEF")  # module level: the registrations live as long as this object


@dataclass(frozen=True)
class Op:
    """One operator `torch.ops.dfq.NAME`. All functions take its arguments.

    name: of the op.
    schema: its arguments and results, as torch writes them.
    check: raises ValueError for arguments that the op refuses; runs before every implementation.
    shape: empty outputs (the fake implementation, for tracing).
    reference: plain torch, for every device; its docstring is the op's.
    native: the function on the native library.
    triton: the module whose function of the op's name serves CUDA tensors, imported at the first of them; or None.
    """

    name: str
    schema: str
    check: Callable[..., None]
    shape: Callable[..., Any]
    reference: Callable[..., Any]
    native: Callable[..., Any]
    triton: str | None = None

    def checked(self, implementation: Callable[..., Any]) -> Callable[..., Any]:
        """`implementation` behind the argument checks."""
        check = self.check

        def call(*args: Any) -> Any:
            check(*args)
            return implementation(*args)

        return call

    def only_reference(self) -> Callable[..., Any]:
        """The reference, unless DFQ_IMPL=native forbids it: then an op without a kernel is an error (RuntimeError)."""
        name, reference = self.name, self.reference

        def call(*args: Any) -> Any:
            if native.only_native():
                raise RuntimeError(f"dfq::{name}: DFQ_IMPL=native, but no kernel serves these tensors' device")
            return reference(*args)

        return call

    def triton_function(self) -> Callable[..., Any]:
        """The Triton implementation. Imports Triton."""
        assert self.triton is not None, self.name
        function: Callable[..., Any] = getattr(importlib.import_module(self.triton), self.name)
        return function


def define(ops: Sequence[Op]) -> None:
    """Make `ops` known to torch, with shape inference and the reference for every device."""
    for op in ops:
        library.define(op.name + op.schema)
        torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.shape, lib=library)
        serve(op, op.only_reference(), "CompositeExplicitAutograd")


def serve(op: Op, implementation: Callable[..., Any], key: str) -> None:
    """Let `implementation`, behind the argument checks, serve dispatch key `key` ("CPU", "CUDA", ...)."""
    library.impl(op.name, op.checked(implementation), key)
