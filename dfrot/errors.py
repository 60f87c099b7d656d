"""Every error that dfq raises on purpose.

One line each: what is wrong, where (file, tensor, option), what to do. `exit_code` is what the command line
returns: 2 when the user can mend it, 1 when dfq itself failed its own check.
"""

from __future__ import annotations


class DfqError(Exception):
    """Base of all errors raised on purpose by dfq."""

    exit_code = 2


class InputError(DfqError):
    """A file, tensor, dataset or option that cannot be used as it is."""


class UnsupportedError(DfqError):
    """A well-formed request that dfq refuses, with the reason."""


class MismatchError(DfqError):
    """Two artefacts that do not belong together (a rotation of another model, statistics of another checkpoint)."""


class ExistsError(DfqError):
    """An output that is already there and was not to be replaced."""


class ResourceError(DfqError):
    """The machine lacks something: disk space, network, access, an optional package."""


class GateError(DfqError):
    """A result failed dfq's own equivalence check and was not published."""

    exit_code = 1
