"""Settings of the stages: every default, range, choice and help text is written once, on the field of a dataclass.

The command line derives its options from these fields, recipes their keys. A settings class looks like this:

    @dataclass(frozen=True)
    class ExampleSettings:
        samples: int = setting(128, minimum=1, help="Number of windows.")

        def __post_init__(self) -> None:
            check(self)

Settings are read without torch and transformers: modules named `settings.py` import neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Protocol, TypeVar

from dfrot.errors import InputError

Moded = TypeVar("Moded", bound="HasModes")
LARGEST_SEED = 2**63 - 1  # of torch.Generator, which reads an int64
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known about a field besides its type and default."""

    help: str
    """One plain sentence for `--help`, the recipe's reader and the caller of the library."""
    minimum: float | None = None
    """The smallest number allowed."""
    maximum: float | None = None
    """The largest number allowed."""
    above: float | None = None
    """Numbers must be larger than this."""
    below: float | None = None
    """Numbers must be smaller than this."""
    choices: tuple[str, ...] = ()
    """The values allowed; empty for no restriction."""
    words: tuple[str, ...] = ()
    """Words allowed in place of a number."""
    option: str = ""
    """The flag on the command line; empty for the field's name (`--no-...` included where the default is True)."""
    aliases: tuple[str, ...] = ()
    """Further flags with the same meaning."""
    metavar: str | None = None
    """How `--help` names the value."""
    listed: bool = False
    """Whether the command line takes the items in one value, with commas between them."""

    def check(self, name: str, value: Any) -> None:
        """Raise InputError, with field and limit, where `value` is not allowed for the setting `name`. None is "not
        set"; of a tuple every item is checked."""
        if isinstance(value, (tuple, list)):
            for item in value:
                self.check(name, item)
        elif self.choices:
            if value is not None and value not in self.choices:
                raise InputError(f"`{name}` {value!r}: choose one of {', '.join(self.choices)}", field=name)
        elif isinstance(value, str):
            if self.words and value not in self.words:
                raise InputError(f"`{name}` {value!r}: must be {' or '.join(self.words)} or a number", field=name)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._check_number(name, value)

    def _check_number(self, name: str, value: float) -> None:
        bounds: tuple[tuple[float | None, Callable[[float], bool]], ...] = (
            (self.minimum, lambda limit: value >= limit),
            (self.above, lambda limit: value > limit),
            (self.maximum, lambda limit: value <= limit),
            (self.below, lambda limit: value < limit),
        )
        for limit, allowed in bounds:
            if limit is not None and not allowed(limit):  # NaN fails every comparison
                raise InputError(f"`{name}` {value}: must be {self.range}", field=name, limit=limit)

    @property
    def range(self) -> str:
        """The allowed numbers in words: `at least 1`, `between 2 and 8`, `above 0 and at most 1`."""
        if self.minimum is not None and self.maximum is not None:
            return f"between {_number(self.minimum)} and {_number(self.maximum)}"
        bounds = (("at least", self.minimum), ("above", self.above), ("at most", self.maximum), ("below", self.below))
        return " and ".join(f"{word} {_number(limit)}" for word, limit in bounds if limit not in (None, math.inf))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def setting(
    default: Any = MISSING,
    *,
    help: str,
    default_factory: Callable[[], Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    option: str = "",
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
    listed: bool = False,
) -> Any:
    """A dataclass field with its default and what `Setting` holds. Without a default the field is required."""
    known = Setting(help, minimum, maximum, above, below, choices, words, option, aliases, metavar, listed)
    if default_factory is not None:
        return field(default_factory=default_factory, metadata={_KEY: known})
    return field(default=default, metadata={_KEY: known})


def same_as(settings: type[Any], name: str, **changes: Any) -> Any:
    """A field like `name` of another settings class: the same default, range, choices and help, except for `changes`
    (`default`, or a field of Setting)."""
    (source,) = (item for item in fields(settings) if item.name == name)
    default = changes.pop("default", source.default)
    known = dataclasses.replace(source.metadata[_KEY], **changes)
    return field(default=default, metadata={_KEY: known})


def seed_setting() -> Any:
    """The field `seed` of a settings class."""
    return setting(0, minimum=0, maximum=LARGEST_SEED, help="Seed of everything random.")


def dataset_setting(default: str, help: str, **more: Any) -> Any:
    """The field `dataset` of a settings class."""
    return setting(default, metavar="D", help=help, **more)


def settings_of(settings: type[Any] | Any) -> dict[str, Setting]:
    """The fields of a settings class (or of an instance) that are described by `setting`, by name, in order."""
    return {item.name: item.metadata[_KEY] for item in fields(settings) if _KEY in item.metadata}


def default_of(settings: type[Any], name: str) -> Any:
    """The default of a field; MISSING where the field is required."""
    (source,) = (item for item in fields(settings) if item.name == name)
    return source.default if source.default_factory is MISSING else source.default_factory()


def check(settings: Any) -> None:
    """Check every described field of a settings instance. A field's default is always allowed.

    Raises InputError that names the field."""
    for name, known in settings_of(settings).items():
        value = getattr(settings, name)
        if value != default_of(type(settings), name):
            known.check(name, value)


class HasModes(Protocol):
    """What a setting chooses by NAME:MODE."""

    @property
    def modes(self) -> Sequence[str]:
        """The modes; a bare name means the first."""


def mode_names(table: Mapping[str, HasModes]) -> list[str]:
    """Every `NAME:MODE` of a table."""
    return [f"{name}:{mode}" for name, choice in table.items() for mode in choice.modes]


def choose_mode(field: str, text: str, table: Mapping[str, Moded]) -> tuple[Moded, str]:
    """The entry of `table` and the mode that `text`, NAME or NAME:MODE, names. Raises InputError, with what there is,
    for the setting `field`."""
    name, _, mode = text.partition(":")
    choice = table.get(name)
    if choice is None or (mode and mode not in choice.modes):
        names = mode_names(table)
        near = difflib.get_close_matches(text, names, 1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise InputError(f"`{field}={text}`: unknown; choose of {', '.join(names)}{hint}", field=field)
    return choice, mode or choice.modes[0]
