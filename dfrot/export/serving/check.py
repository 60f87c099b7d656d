"""`dfq export DIR --check ENGINE ...`: what every engine that is set up makes of an export, each in its own process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import UnsupportedError
from dfrot.evaluate.tokens import WindowReader
from dfrot.export.run import export
from dfrot.export.serving.definition import Declaration, Definition, define, read_declaration, without_transform
from dfrot.export.serving.driving import DriverRequest, EngineRun, answer_of, run_engine
from dfrot.export.serving.environments import EngineEnvironment, find_environments
from dfrot.export.serving.verdict import judge, perplexity_of
from dfrot.export.settings import ExportCheckSettings
from dfrot.export.targets import TARGETS
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.runtime.load import load_model

PROMPT = 32  # tokens of the first window that the engines continue


@dataclass(frozen=True)
class _Text:
    """What every engine reads."""

    windows: Tensor
    """Token ids int64 [n, S]."""
    tokenizer: Any
    """The tokenizer that made them."""

    @property
    def prompt(self) -> Tensor:
        """The tokens to continue."""
        return self.windows[0, : min(PROMPT, self.windows.shape[1] // 2)]


def check_engines(
    model: Path,
    names: Sequence[str],
    settings: ExportCheckSettings,
    formats: Sequence[str] = (),
    *,
    online_r4: bool = False,
    threads: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run engines on `model` and judge each.

    Args:
        model: an exported folder, or a checkpoint that is exported to every format that holds it.
        names: engines; empty for all that read the format. Those that are not set up are in the report.
        settings: text, windows, where the engines are, how long one may take.
        formats: of a checkpoint: export to these only.
        online_r4: of a checkpoint: write R4 as an online transform.
        threads: that an engine may use.

    Returns {"model", "rows"}. Keys of a row: scheme, target, storage, engine, verdict, detail, kept, perplexity,
    declared, sixteen, share, ratio (`verdict.Verdict`), dfq (perplexity of dfq's own runtime, of a packed
    checkpoint), versions, linears, ignored, peak_bytes, seconds, text, same_tokens. Raises DfqError for a model that
    no engine could be given."""
    environments = find_environments(settings.engines, names)
    text = _read_text(model, settings)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dfq-check-") as work:
        if _declared(model) is not None:
            rows = _check_folder(model, text, environments, settings, threads, bool(names), progress)
        else:
            own = _own_perplexity(model, text)
            for name in formats or TARGETS:
                try:
                    export(model, name, Path(work) / name, online_r4=online_r4 and name == "compressed-tensors")
                except UnsupportedError as error:
                    rows.append({"target": name, "verdict": "no export", "detail": str(error), "kept": False})
                    continue
                checked = _check_folder(Path(work) / name, text, environments, settings, threads, False, progress)
                rows += [{**row, "dfq": own} for row in checked]
    return {"model": str(model), "rows": rows}


def _declared(model: Path) -> Declaration | None:
    """What an exported folder declares; None for a checkpoint."""
    try:
        return read_declaration(model)
    except UnsupportedError:
        return None


def _read_text(model: Path, settings: ExportCheckSettings) -> _Text:
    declaration = _declared(model)
    with without_transform(model, declaration) if declaration is not None else nullcontext(model) as plain:
        folder = open_model(plain).path
        tokens = WindowReader(load_text(settings.dataset, "test"), settings.seqlen, settings.windows).read(folder)
        return _Text(tokens.windows, load_tokenizer(folder))


def _own_perplexity(model: Path, text: _Text) -> float:
    """Perplexity of dfq's own kernels, in float32 around the integers."""
    runtime = load_model(model, torch.float32)
    losses = []
    with torch.inference_mode():
        for window in text.windows:
            logits = runtime(input_ids=window[None], use_cache=False).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="none"))
    return perplexity_of(losses)


def _check_folder(
    folder: Path,
    text: _Text,
    environments: dict[str, EngineEnvironment | None],
    settings: ExportCheckSettings,
    threads: int,
    explicit: bool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The rows of one exported folder. explicit: run engines on formats that they are not known to read."""
    declaration = read_declaration(folder)
    definition = define(folder, text.windows, text.prompt, settings.new_tokens)
    request = DriverRequest(folder, text.windows.tolist(), text.prompt.tolist(), settings.new_tokens, threads)
    common = {"scheme": declaration.name, "target": declaration.method, "storage": declaration.storage}
    from dfrot.export.serving.environments import ENGINES

    names = [name for name in environments if explicit or declaration.method in ENGINES[name].formats]
    rows = []
    for number, name in enumerate(names):
        progress("engines", number, len(names))
        environment = environments[name]
        run = run_engine(environment, request, settings.time_limit) if environment is not None else None
        verdict = judge(run, declaration, definition)
        rows.append({**common, "engine": name, **verdict.to_dict(), **_of_run(run, definition, text)})
    return rows


def _of_run(run: EngineRun | None, definition: Definition, text: _Text) -> dict[str, Any]:
    """What is reported of a run besides its verdict."""
    if run is None:
        return {}
    if run.refusal is not None:
        return {**answer_of(run), "text": None, "same_tokens": None}
    same = 0
    for ours, theirs in zip(definition.tokens, run.tokens):
        if ours != theirs:
            break
        same += 1
    return {**answer_of(run), "text": text.tokenizer.decode(run.tokens), "same_tokens": [same, len(run.tokens)]}
