"""How the command line reads the values of settings."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from dfrot.errors import UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.settings import Setting

_SHOWN = 1 << 53  # larger limits are those of a data type, and say nothing in --help


def number_name(kind: type, known: Setting) -> str:
    """What --help calls a number, in the place of its value and in its range."""
    return known.metavar or ("N" if kind is int else "X")


class _IntRange(click.IntRange):
    """Shows the range in --help; the setting checks it."""

    shown = "N"

    def _describe_range(self) -> str:
        return super()._describe_range().replace("x", self.shown)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.INT.convert(value, param, ctx)


class _FloatRange(click.FloatRange):
    """Shows the range in --help; the setting checks it."""

    shown = "X"

    def _describe_range(self) -> str:
        return super()._describe_range().replace("x", self.shown)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.FLOAT.convert(value, param, ctx)


def number_type(kind: type, known: Setting) -> click.ParamType[Any]:
    """The click type of a number with the setting's range."""
    low, high = (known.above if known.minimum is None else known.minimum), known.maximum
    high = known.below if high is None else high
    high = None if high is None or high > _SHOWN or math.isinf(high) else high
    if low is None and high is None:
        return click.INT if kind is int else click.FLOAT
    ranged: _IntRange | _FloatRange
    if kind is int:
        ranged = _IntRange(None if low is None else int(low), None if high is None else int(high))
    else:
        ranged = _FloatRange(
            low,
            high,
            min_open=known.minimum is None and low is not None,
            max_open=known.maximum is None and high is not None,
        )
    ranged.shown = number_name(kind, known)
    return ranged


class _NumberOrWord(click.ParamType):  # type: ignore[type-arg]
    """A number, or text that the settings compare with their words."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return float(value)
        except ValueError:
            return value


class _Scheme(click.ParamType):  # type: ignore[type-arg]
    """A quantization scheme by its name."""

    name = "scheme"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, QuantScheme) else QuantScheme.parse(value)


class _Table(click.ParamType):  # type: ignore[type-arg]
    """How the embedding or the head is stored, by its name."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, TableScheme):
            return value
        try:
            return TableScheme.parse(value)
        except UnsupportedError as error:
            name = str(param.name) if param is not None else "table"
            raise UnsupportedError(f"`{name}` {error}", field=name) from None


class _Listed(click.ParamType):  # type: ignore[type-arg]
    """Values with commas between them, as a tuple."""

    name = "list"

    def __init__(self, item: type) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.item(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter("write numbers with commas between them, like 1,4,8", ctx, param) from None


class _Sizes(click.ParamType):  # type: ignore[type-arg]
    """Sizes NxK with commas between them, as a tuple of pairs."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        matches = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in value.split(",")]
        if not all(matches):
            raise click.BadParameter("write N x K of a weight, like 4096x4096,14336x4096", ctx, param)
        return tuple((int(match[1]), int(match[2])) for match in matches if match)


def listed_type(item: Any) -> click.ParamType[Any]:
    """The click type of values with commas between them."""
    return LISTED_INTS if item is int else LISTED_TEXT if item is str else SIZES


def listed_text(values: tuple[Any, ...]) -> str:
    """How the command line writes such values."""
    return ",".join("x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)


SIZES = _Sizes()
NUMBER_OR_WORD, SCHEME, TABLE = _NumberOrWord(), _Scheme(), _Table()
LISTED_INTS, LISTED_TEXT = _Listed(int), _Listed(str)
