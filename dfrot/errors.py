"""Every error that dfq raises on purpose.

The message is one line: what is wrong, where (file, tensor, setting), what to do. What is wrong is carried as data too,
so that no caller has to read the text: `field` names the setting, `file` the file, `tensor` the tensor, `limit` the
bound that was crossed, `code` a reason that a program may act on. In the message a setting stands in backticks under
its Python name (`seqlen`); the command line shows it as its option (--seqlen). `exit_code` is what the command line
returns: 2 when the user can mend it, 1 when dfq itself failed its own check.
"""

from __future__ import annotations

from pathlib import Path


class DfqError(Exception):
    """Base of all errors raised on purpose by dfq.

    Args:
        message: one line; settings under their Python names, in backticks.
        field: the setting that would mend it, or several; each is a name in backticks of the message.
        file: the file or folder at fault.
        tensor: the tensor at fault.
        limit: the bound that was crossed.
        code: a reason that programs act on, for instance `context_length_exceeded`.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        field: str | tuple[str, ...] = (),
        file: Path | str | None = None,
        tensor: str | None = None,
        limit: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.fields = (field,) if isinstance(field, str) else field
        self.file, self.tensor, self.limit, self.code = file, tensor, limit, code


class InputError(DfqError):
    """A file, tensor, dataset or setting that cannot be used as it is."""


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


def reason_of(error: BaseException) -> str:
    """The first line of an error of another package, or its type where it says nothing: for messages of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
