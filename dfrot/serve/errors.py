"""What a client gets when its request is refused, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from dfrot.errors import DfqError
from dfrot.generation.output import CONTEXT_LENGTH_EXCEEDED

# HTTP status -> `type` of the error, and headers of the response
_STATUSES: dict[int, tuple[str, dict[str, str]]] = {
    401: ("authentication_error", {}),
    404: ("not_found_error", {}),
    408: ("invalid_request_error", {"connection": "close"}),
    413: ("invalid_request_error", {"connection": "close"}),
    429: ("rate_limit_error", {"retry-after": "1"}),
    503: ("server_error", {"retry-after": "1"}),
    504: ("timeout_error", {}),
}
# `code` of a DfqError -> HTTP status and `code` of the API; all others are plain 400s
_LIBRARY_CODES: dict[str | None, tuple[int, str]] = {
    CONTEXT_LENGTH_EXCEEDED: (400, "context_length_exceeded"),
}


class ApiError(Exception):
    """A refused request."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        """status: of HTTP. param: the field at fault. code: a reason that programs act on."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return _STATUSES.get(self.status, ("", {}))[1]

    def body(self) -> dict[str, Any]:
        """JSON body of the response."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _STATUSES.get(self.status, (default, {}))[0]
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that its sender can correct."""
    return ApiError(400, message, param, code)


def api_error(error: DfqError) -> ApiError:
    """A library error about a request, as the API reports it."""
    status, code = _LIBRARY_CODES.get(error.code, (400, None))
    return ApiError(status, str(error), param=next(iter(error.fields), None), code=code)
