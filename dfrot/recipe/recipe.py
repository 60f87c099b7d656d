"""A recipe: the model, the data, the settings of every stage, and what should come out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import InputError
from dfrot.files import digest_json
from dfrot.recipe import check, document
from dfrot.recipe.convert import build, convert, nearest
from dfrot.recipe.stages import STAGES, metrics_of, require_order

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TOP = {"name": str, "model": str, "dataset": str, "seed": int, "notes": str}
"""Keys beside the stages and `expect`. notes: what a reader should know; it changes nothing."""


@dataclass(frozen=True)
class Recipe:
    """stages: settings by stage name, in the order they run. expect: by metric."""

    name: str
    model: str
    dataset: str
    seed: int
    notes: str
    stages: dict[str, Any]
    expect: check.Expected

    def request(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON (neither notes nor expectations do)."""
        return {"model": self.model, "stages": {name: asdict(settings) for name, settings in self.stages.items()}}

    @property
    def digest(self) -> str:
        return digest_json(self.request())


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a file with `--set` changes. Raises DfqError for whatever is unknown, missing or impossible."""
    return parse(document.override(document.read(path), changes), str(path))


def parse(value: dict[str, Any], where: str) -> Recipe:
    """The recipe of a document that was read already."""
    known = {*TOP, *STAGES, "expect"}
    for key in value:
        if key not in known:
            raise InputError(f"{where}: {key}: unknown key; {nearest(key, known)}")
    for key in ("name", "model", "dataset"):
        if key not in value:
            raise InputError(f"{where}: {key}: is missing; add it")
    top: dict[str, Any] = {"seed": 0, "notes": ""}
    top |= {key: convert(value[key], kind, f"{where}: {key}") for key, kind in TOP.items() if key in value}
    if not _NAME.fullmatch(top["name"]):
        raise InputError(f"{where}: name: {top['name']!r} cannot name a folder; use letters, digits, '-', '_', '.'")
    if top["seed"] < 0:
        raise InputError(f"{where}: seed: {top['seed']} is negative; use 0 or more")
    shared = {"dataset": top["dataset"], "seed": top["seed"]}
    stages = {
        name: build(row.settings, value[name] if value[name] is not None else {}, f"{where}: {name}", shared)
        for name, row in STAGES.items()
        if name in value
    }
    require_order(stages, where)
    expect = check.parse(value.get("expect") or {}, metrics_of(stages), f"{where}: expect")
    return Recipe(**top, stages=stages, expect=expect)
