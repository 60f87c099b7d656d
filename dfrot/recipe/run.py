"""Running a recipe: every stage as a folder of the run, finished ones reused, interrupted ones continued.

OUT/recipe.json    the resolved recipe and the key of every finished stage
OUT/rotated ...    the folders of the stages, each with its stage.json
OUT/run.json       digests of all stages, metrics, expectations; the same bytes however often a run was killed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.errors import ExistsError, InputError, ResourceError
from dfrot.files import digest_json, file_sha256, read_json, remove_partial, write_json
from dfrot.hub import find_local, resolve_model
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.recipe import check
from dfrot.recipe.recipe import Recipe
from dfrot.recipe.stages import STAGES

RECIPE, RUN = "recipe.json", "run.json"


def plan(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What `run` would do, stage by stage, as JSON; nothing is written and nothing is downloaded."""
    folder = find_local(recipe.model)
    known = _keys(out)
    keys = dict(_stage_keys(recipe, None if folder is None else open_model(folder).digest()))
    rows = []
    for name, settings in recipe.stages.items():
        place = out / STAGES[name].folder
        if (place.parent / f".{place.name}.partial").exists():
            state = "interrupted; would continue if nothing before it changes"
        elif not place.exists():
            state = "new"
        elif folder is not None and known.get(name) == keys[name]:
            state = "finished; would be reused"
        else:
            state = "made with other settings; would be refused (see --overwrite)"
        rows.append({"stage": name, "folder": str(place), "state": state, "settings": asdict(settings)})
    model = str(folder) if folder is not None else f"{recipe.model} (not on this machine: would be fetched)"
    expected = {name: asdict(expectation) for name, expectation in recipe.expect.items()}
    return {"name": recipe.name, "model": model, "out": str(out), "digest": recipe.digest, "stages": rows,
            "expect": expected}  # fmt: skip


def run(
    recipe: Recipe, out: Path, *, progress: Progress = silent, resume: bool | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Run every stage of `recipe` into the folder `out`; returns `run.json`.

    A stage that is finished with the same request is reused, an interrupted one continues; one with other settings is
    refused (ExistsError) unless `overwrite` makes it again. resume: False makes all stages again; True requires a run
    to continue."""
    if resume and not (out / RECIPE).is_file():
        raise InputError(
            f"{out}: holds no run to resume; leave out `resume`, or give its `out`", field=("resume", "out"), file=out
        )
    for name in (RECIPE, RUN):
        remove_partial(out / name)
    if out.exists() and not (out / RECIPE).is_file() and any(out.iterdir()):
        raise ExistsError(
            f"{out}: already exists and holds no run of a recipe; choose another `out`", field="out", file=out
        )
    model = resolve_model(recipe.model, progress)
    if out.resolve() == model.resolve():
        raise InputError(f"{out}: is the model itself; choose another `out`", field="out", file=out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{out}: cannot be created ({error.strerror}); choose another `out`", field="out", file=out
        ) from None
    keys = dict(_stage_keys(recipe, open_model(model).digest()))
    known = {} if resume is False else _keys(out)
    _remember(recipe, out, known)
    (out / RUN).unlink(missing_ok=True)  # it describes what is about to change
    folders, metrics = {"model": model}, dict[str, float]()
    stages: dict[str, dict[str, str]] = {}
    for number, (name, settings) in enumerate(recipe.stages.items(), 1):
        stage = STAGES[name]
        place = out / stage.folder
        record = _stage(stage.run, folders, settings, place, resume, overwrite,
                          _labelled(progress, f"{number}/{len(recipe.stages)} {name}"))  # fmt: skip
        known[name] = keys[name]
        _remember(recipe, out, known)
        folders[stage.folder] = place
        metrics |= stage.metrics(record)
        stages[name] = {"folder": stage.folder, "digest": _folder_digest(place)}
    checks = check.compare(recipe.expect, metrics)
    report = {"name": recipe.name, "model": recipe.model, "recipe": recipe.digest, "stages": stages,
              "metrics": metrics, "checks": checks}  # fmt: skip
    write_json(out / RUN, report)
    return report


def _stage(
    function: Any, folders: dict[str, Path], settings: Any, place: Path, resume: bool | None, overwrite: bool,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    if resume is False:
        return dict(function(folders, settings, place, progress=progress, resume=False, overwrite=True))
    try:
        # a finished folder must be of this very request; an interrupted one of another request starts over
        return dict(function(folders, settings, place, progress=progress, resume=True if place.exists() else None))
    except ExistsError as error:
        if not place.exists():
            raise  # another process is at work there
        if not overwrite:
            raise ExistsError(
                f"{place}: was made with other settings; choose another `out`, or make it again with `overwrite`",
                field=("out", "overwrite"),
                file=place,
            ) from error
    return dict(function(folders, settings, place, progress=progress, overwrite=True))


def _labelled(progress: Progress, stage: str) -> Progress:
    return lambda label, done, total: progress(f"{stage}: {label}", done, total)


def _stage_keys(recipe: Recipe, model: str | None) -> Iterator[tuple[str, str]]:
    """(stage name, key): a key is the digest of the stage's settings and of everything before it. model: digest of the
    checkpoint."""
    chain: list[Any] = [model]
    for name, settings in recipe.stages.items():
        chain.append([name, asdict(settings)])
        yield name, digest_json(chain)


def _keys(out: Path) -> dict[str, str]:
    if not (out / RECIPE).is_file():
        return {}
    value = read_json(out / RECIPE)
    keys = value.get("keys") if isinstance(value, dict) else None
    return {str(name): str(key) for name, key in keys.items()} if isinstance(keys, dict) else {}


def _remember(recipe: Recipe, out: Path, keys: dict[str, str]) -> None:
    kept = {name: key for name, key in keys.items() if name in recipe.stages}
    write_json(out / RECIPE, {"name": recipe.name, "notes": recipe.notes, **recipe.request(), "keys": kept})


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of all files of a stage."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digest_json(digests)
