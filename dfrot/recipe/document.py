"""The YAML file itself: small, plain, without aliases and double keys; and `--set a.b=c` on top of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfrot.errors import InputError

MOST = 1 << 20  # bytes: a recipe is a page of text


class _Strict(yaml.SafeLoader):
    """Plain data only: an alias can blow up, a double key hides a value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"key {name!r} is not text (line {key.start_mark.line + 1})")
            if name in seen:
                raise yaml.YAMLError(f"key {name!r} stands twice (line {key.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: not readable as YAML ({' '.join(str(error).split())}); mend it") from None


def read(path: Path) -> dict[str, Any]:
    """The top mapping of a recipe file. Raises InputError in one line."""
    try:
        raw = path.read_bytes()[: MOST + 1]
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: file not found; recipes are YAML files, see docs/guides/recipes.md") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text ({error}); give a YAML file") from None
    if len(raw) > MOST:
        raise InputError(f"{path}: is larger than {MOST >> 20} MiB; a recipe is a page of YAML")
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no keys; a recipe begins with name: and model:")
    return value


def override(document: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of `document` with `a.b=c` applied in order; c is read as YAML, `null` removes the key."""
    result: dict[str, Any] = _copied(document)
    for change in changes:
        path, found, text = change.partition("=")
        names = path.strip().split(".")
        if not found or not all(names):
            raise InputError(f"--set {change}: write it like quantize.scheme=w4a16")
        value = _parse(text, f"--set {change}")
        place = result
        for depth, name in enumerate(names[:-1]):
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {change}: {'.'.join(names[: depth + 1])} is a value and has no keys")
        if value is None:
            place.pop(names[-1], None)
        else:
            place[names[-1]] = value
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
