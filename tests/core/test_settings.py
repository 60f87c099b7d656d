"""The helper behind every settings class: what it stores, what it refuses, and that no default stands twice."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import dfrot
from dfrot.errors import InputError
from dfrot.settings import check, default_of, same_as, setting, settings_of


@dataclass(frozen=True)
class Example:
    """A settings class with every kind of field."""

    name: str = setting(help="A required text.")
    count: int = setting(3, minimum=1, maximum=9, help="A whole number.")
    share: float = setting(0.5, above=0, below=1, help="A number between two open limits.")
    kind: str = setting("a", choices=("a", "b"), help="One of two words.")
    gamma: float | str = setting("auto", words=("auto",), minimum=0, help="A number or a word.")
    sizes: tuple[int, ...] = setting((1, 2), minimum=1, help="Several numbers.")
    missing: int | None = setting(None, minimum=1, help="A number that may be left out.")
    quiet: str = setting("", choices=("loud",), help="A choice whose default is none of the choices.")

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "`count` 0: must be between 1 and 9"),
        ({"count": 10}, "`count` 10: must be between 1 and 9"),
        ({"share": 0.0}, "`share` 0.0: must be above 0 and below 1"),
        ({"share": float("nan")}, "`share` nan: must be above 0 and below 1"),
        ({"kind": "c"}, "`kind` 'c': choose one of a, b"),
        ({"gamma": "much"}, "`gamma` 'much': must be auto or a number"),
        ({"gamma": -1.0}, "`gamma` -1.0: must be at least 0"),
        ({"sizes": (1, 0)}, "`sizes` 0: must be at least 1"),
        ({"missing": 0}, "`missing` 0: must be at least 1"),
        ({"quiet": "soft"}, "`quiet` 'soft': choose one of loud"),
    ],
)
def test_a_value_that_is_not_allowed_names_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Example("x", **change)
    assert str(caught.value) == message
    assert caught.value.fields == tuple(change)


def test_the_limit_that_was_crossed_is_data() -> None:
    with pytest.raises(InputError) as caught:
        Example("x", count=10)
    assert caught.value.limit == 9


@pytest.mark.parametrize("change", [{"count": 9}, {"gamma": 2.5}, {"kind": "b"}, {"missing": 1}, {"quiet": "loud"}, {}])
def test_allowed_values_pass(change: dict[str, Any]) -> None:
    assert dataclasses.asdict(Example("x", **change)).items() >= change.items()


def test_defaults_and_descriptions_are_readable() -> None:
    assert list(settings_of(Example)) == [field.name for field in dataclasses.fields(Example)]
    assert default_of(Example, "name") is dataclasses.MISSING
    assert default_of(Example, "sizes") == (1, 2)
    assert settings_of(Example)["share"].range == "above 0 and below 1"


def test_a_field_can_be_taken_over_from_another_class() -> None:
    @dataclass(frozen=True)
    class Other:
        number: int = same_as(Example, "count")
        larger: int = same_as(Example, "count", default=5, help="A larger number.")

    assert (Other().number, Other().larger) == (3, 5)
    known = settings_of(Other)
    assert known["number"] == settings_of(Example)["count"]
    assert (known["larger"].help, known["larger"].maximum) == ("A larger number.", 9)


def settings_classes() -> Iterator[type[Any]]:
    """Every class of the library with a described field."""
    for module in pkgutil.walk_packages(dfrot.__path__, "dfrot."):
        if module.name.endswith((".settings", ".sampling", ".criteria", ".recipe.measure")):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                    yield value


def test_every_settings_class_is_listed() -> None:
    names = {kind.__name__ for kind in settings_classes()}
    assert names >= {"RotateSettings", "QuantizeSettings", "TrainSettings", "Sampling", "Criteria", "CheckpointEval"}


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type[Any]) -> None:
    """A field holds another settings class, or has a help text: one that ends like a sentence."""
    if not settings_of(kind):
        return
    for field in dataclasses.fields(kind):
        if field.name in settings_of(kind):
            assert settings_of(kind)[field.name].help.rstrip().endswith("."), f"{kind.__name__}.{field.name}"
        else:
            assert field.name in {
                "criteria",
                "recipe",
                "outliers",
                "data",
                "train",
                "weights",
                "sampling",
                "shapes",
            } | {"processors"}, f"{kind.__name__}.{field.name} has no help"


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_settings_check_themselves(kind: type[Any]) -> None:
    """Every bounded field refuses a value beyond its bound, whoever sets it."""
    for name, known in settings_of(kind).items():
        bound = known.minimum if known.minimum is not None else known.above
        if bound is None or name == "tasks":
            continue
        below = bound - 1
        if isinstance(default_of(kind, name), tuple):
            below = (below,)
        required = {
            item: "x" for item in settings_of(kind) if default_of(kind, item) is dataclasses.MISSING and item != name
        }
        with pytest.raises(InputError) as caught:
            kind(**{**required, name: below})
        assert caught.value.fields == (name,)
