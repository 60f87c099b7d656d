"""Recipe files: plain YAML without aliases and double keys, and `--set a.b=c` changes on top."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfrot.errors import InputError

MAX_BYTES = 1 << 20  # a recipe is a page of text


class _Strict(yaml.SafeLoader):
    """Reads plain data only: aliases can expand without limit, and a double key hides a value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"key {name!r} is not text (line {key.start_mark.line + 1})")
            if name in names:
                raise yaml.YAMLError(f"key {name!r} is given twice (line {key.start_mark.line + 1})")
            names.add(name)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: not readable as YAML ({' '.join(str(error).split())}); correct the file") from None


def read(path: Path) -> dict[str, Any]:
    """The keys of a recipe file. Raises InputError for a file that is missing, too large or not plain YAML."""
    try:
        raw = path.read_bytes()[: MAX_BYTES + 1]
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: file not found; recipes are YAML files, see docs/guides/recipes.md", file=path
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text ({error}); give a YAML file", file=path) from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; a recipe is a page of YAML", file=path)
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no keys; a recipe begins with name: and model:", file=path)
    return value


def override(document: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of `document` with changes `a.b=c` applied in order; c is read as YAML, `null` removes the key. Raises
    InputError for a change that cannot be applied."""
    result: dict[str, Any] = _copied(document)
    for change in changes:
        path, separator, text = change.partition("=")
        names = path.strip().split(".")
        if not separator or not all(names):
            raise InputError(f"`changes` {change}: write it like quantize.scheme=w4a16", field="changes")
        value = _parse(text, f"`changes` {change}")
        section = result
        for depth, name in enumerate(names[:-1]):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise InputError(
                    f"`changes` {change}: {'.'.join(names[: depth + 1])} is a value and has no keys", field="changes"
                )
        if value is None:
            section.pop(names[-1], None)
        else:
            section[names[-1]] = value
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
