"""A recipe: the model, the data, the settings of every stage, and the expected metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.errors import InputError
from dfrot.files import digest_json
from dfrot.recipe import check, document
from dfrot.recipe.convert import build, convert, nearest
from dfrot.recipe.stages import STAGES, metrics_of, require_order
from dfrot.stages.quantize.settings import QuantizeSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TOP = {"name": str, "model": str, "dataset": str, "seed": int, "notes": str}
"""Types of the keys beside the stages and `expect`."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked."""

    name: str
    """Also names the run folder."""
    model: str
    """A folder, alias or hub id."""
    dataset: str
    """The text of every stage that names no other."""
    seed: int
    """The seed of every stage that names no other."""
    notes: str
    """Words for the reader; they change nothing."""
    stages: dict[str, Any]
    """Settings by stage name, in the order the stages run."""
    expect: check.Expected
    """Expectations by metric."""

    def request(self) -> dict[str, Any]:
        """What decides the result, as JSON: model and stages, but neither notes nor expectations."""
        return {"model": self.model, "stages": {name: asdict(settings) for name, settings in self.stages.items()}}

    @property
    def digest(self) -> str:
        """SHA-256 of the request."""
        return digest_json(self.request())


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with changes `a.b=c` applied. Raises DfqError for anything unknown, missing or
    impossible."""
    return parse(document.override(document.read(path), changes), str(path))


def parse(value: dict[str, Any], where: str) -> Recipe:
    """The recipe of a document that was read already. where: the file, for messages. Raises DfqError as `load`."""
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
        name: build(stage.settings, value[name] if value[name] is not None else {}, f"{where}: {name}", shared)
        for name, stage in STAGES.items()
        if name in value
    }
    quantization = stages.get("quantize")
    if isinstance(quantization, QuantizeSettings) and quantization.tuned and quantization.tune_dataset is None:
        stages["quantize"] = replace(quantization, tune_dataset=top["dataset"])
    require_order(stages, where)
    expect = check.parse(value.get("expect") or {}, metrics_of(stages), f"{where}: expect")
    return Recipe(**top, stages=stages, expect=expect)
