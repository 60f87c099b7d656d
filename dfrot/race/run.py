"""`dfq bench models`: whole models beside other engines on the same token ids, in turns, a process for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe
from dfrot.bench.machine import machine
from dfrot.data.text import load_text
from dfrot.errors import InputError
from dfrot.evaluate.tokens import WindowReader
from dfrot.files import digest_json, write_json
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.race.field import by_source, dfq_contenders, exported_contenders, peer_contenders
from dfrot.race.heat import Heat, Tokens
from dfrot.race.prepare import Workshop
from dfrot.race.settings import RaceSettings
from dfrot.race.turns import Samples, timed_prompts

KIND = "bench models"
SAMPLES, REPORT = "samples.jsonl", "race.json"


def bench_models(
    models: Sequence[Path],
    packed: Sequence[Path] = (),
    settings: RaceSettings | None = None,
    *,
    out: Path | None = None,
    resume: bool | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure dfq and every engine that is set up, at batch 1, on the processors and threads that torch uses.

    Returns {"kind", "settings", "machine", "sources"}: per 16-bit folder its `results` in the order of the race (see
    `results.result`), `absent` (names of contenders that did not run, and why) and `notes`.

    Args:
        models: 16-bit folders.
        packed: dfq's checkpoints made from them; sizes and tokenizer say which belongs to which.
        settings: of the race; None takes the defaults.
        out: a folder for the report and for every sample, with which an interrupted race goes on.
        resume: None continues where `out` holds this race, True insists on it, False starts over.
        progress: called before every measurement.

    Raises InputError for folders that do not belong together, MismatchError for `out` of another race."""
    settings = settings or RaceSettings()
    sources = by_source([Path(model) for model in models], [Path(folder) for folder in packed])
    threads = torch.get_num_threads()
    cpus = processors(threads)
    request = {
        "settings": {key: str(value) for key, value in asdict(settings).items()},
        "threads": threads,
        "models": [open_model(folder).digest() for folder in (*models, *packed)],
    }
    samples = Samples(None if out is None else out / SAMPLES, digest_json(request), resume)
    reports = []
    for source, folders in sources.items():
        reports.append(_source(source, folders, settings, cpus, samples, progress))
    report = {
        "kind": KIND,
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        "machine": {**machine(), "processors": cpus},
        "sources": reports,
    }
    if out is not None:
        write_json(out / REPORT, report)
    return report


def processors(threads: int) -> list[int]:
    """The processors that every contender may use: the first `threads` of this process's."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
    if len(allowed) < threads:
        raise InputError(f"`threads={threads}`: this process may use {len(allowed)} processors", field="threads")
    return allowed[:threads]


def _source(
    source: Path,
    packed: Sequence[Path],
    settings: RaceSettings,
    cpus: Sequence[int],
    samples: Samples,
    progress: Progress,
) -> dict[str, Any]:
    """The race over one 16-bit folder."""
    checkpoint = open_model(source)
    context = int(describe(checkpoint.config).config.get("max_position_embeddings") or 1 << 31)
    fitting, notes = timed_prompts(settings, context)
    if not fitting:
        raise InputError(f"{source}: no prompt fits its context of {context}", field="prompts", limit=context)
    tokens = read_tokens(source, settings, max(timed.prompt for timed in fitting))
    files = (settings.files or settings.engines / "models") / checkpoint.digest()[:16]
    shop = Workshop(source.absolute(), files.absolute(), settings.engines.absolute(), len(cpus))
    progress("make the engines' models", 0, 1)
    peers, absent = peer_contenders(shop, settings.peers, cpus)
    exports, refused = exported_contenders(shop, packed, cpus) if "vllm" in settings.peers else ([], {})
    contenders = [*dfq_contenders(source, packed, cpus), *peers, *exports]
    heat = Heat(source.name, contenders, fitting, tokens, settings, samples, len(cpus), progress)
    try:
        results = heat.run()
    finally:
        heat.close()
    return {
        "model": str(source),
        "results": results,
        "absent": {**absent, **refused, **heat.failed},
        "notes": notes,
    }


def read_tokens(source: Path, settings: RaceSettings, longest: int) -> Tokens:
    """Windows for the perplexities, and the prompt of `longest` tokens whose beginning every prompt is. Raises
    InputError for a text that is too short."""
    text = load_text(settings.dataset, "test")
    windows = WindowReader(text, settings.seqlen, settings.windows).read(source).windows
    prompt = WindowReader(text, longest, 1).read(source).windows[0]
    return Tokens([window.tolist() for window in windows], prompt.tolist())
