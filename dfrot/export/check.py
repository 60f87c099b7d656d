"""`dfq export --check`: every scheme into every format, loaded by its engine and compared with dfq's own numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.data.text import load_text
from dfrot.errors import UnsupportedError
from dfrot.evaluate.tokens import WindowReader
from dfrot.export import engines
from dfrot.export.engine_arithmetic import load_with_engine_arithmetic
from dfrot.export.fit import SCHEMES, fit
from dfrot.export.run import export
from dfrot.export.targets import TARGETS, engine_activation_clip
from dfrot.files import write_bytes, write_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.stages.quantize.run import QuantizeSettings, quantize

KIND = "export check"
TOLERANCE = 0.005  # of perplexity


def check_all(
    model: Path,
    out: Path,
    dataset: str,
    seqlen: int = 256,
    windows: int = 4,
    schemes: tuple[str, ...] = SCHEMES,
    *,
    progress: Progress = silent,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Quantize the 16-bit `model` by rounding under every scheme, export to every target, load, compare. A packed
    model is taken as it is: one scheme, its own.

    Writes `check.json` and `check.md` into `out`; returns {"rows": [...]}. A row: scheme, target, refused (one line)
    and instead, or storage, engine, perplexity, ours (both float32 around the same integers; see `load_with_engine_arithmetic` where
    activations are quantized), ratio, logits (relative RMS difference), match (perplexity within 0.5 %), runtime
    (perplexity of dfq's own kernels in float32)."""
    entry = DfqConfig.of(Checkpoint.open(model).config)
    if entry is not None and (entry.scheme is None or entry.fake):
        what = "is simulated" if entry.scheme is not None else "expects online rotations"
        raise UnsupportedError(f"{model}: {what}; give a packed checkpoint, or a 16-bit one of dfq rotate --no-online")
    own = entry.scheme if entry is not None else None
    names = schemes if own is None else (own.name,)
    tokens = WindowReader(load_text(dataset, "test"), seqlen, windows).read(model).windows
    request = {"model": Checkpoint.open(model).digest(), "dataset": dataset, "shape": list(tokens.shape)}
    rows: list[dict[str, Any]] = []
    with open_stage(out, KIND, request, False, overwrite) as stage:
        work = stage.folder / "work"
        for number, name in enumerate(names):
            progress("check", number, len(names))
            source = model if own is not None else quantize_by_rounding(model, QuantScheme.parse(name), work / name / "dfq")
            rows += _scheme(source, QuantScheme.parse(name), work / name, tokens)
            shutil.rmtree(work / name, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        write_json(stage.folder / "check.json", rows)
        write_bytes(stage.folder / "check.md", markdown(rows).encode())
        stage.publish({"tolerance": TOLERANCE, "rows": rows})
    return read_record(out, KIND)


def quantize_by_rounding(model: Path, scheme: QuantScheme, out: Path) -> Path:
    """`model` rounded to `scheme`; symmetric activations by the engines' convention."""
    if scheme.w_bits == FULL and scheme.a_bits == FULL and scheme.kv_bits == FULL:
        return model
    if scheme.a_bits != FULL and scheme.a_sym:
        scheme = replace(scheme, a_clip=engine_activation_clip(scheme.a_bits))
    quantize(model, None, out, QuantizeSettings(scheme, algorithm="rtn", mse_clip=False))
    return out


def _scheme(source: Path, scheme: QuantScheme, work: Path, tokens: Tensor) -> list[dict[str, Any]]:
    """The row of the matrix for one scheme."""
    own: list[tuple[Tensor, Tensor]] = []
    runtime = 0.0
    rows = []
    for name, target in TARGETS.items():
        row: dict[str, Any] = {"scheme": scheme.name, "target": name, "refused": None, "word": None, "instead": None}
        try:
            evidence = export(source, name, work / name)
        except UnsupportedError as error:
            found = fit(target, scheme)
            text = str(error).removeprefix(f"{source}: ").partition(";")[0]
            word = {"refused": found.reason or text, "word": found.word or text, "instead": found.instead}
            rows.append({**row, **word})
            continue
        if not own:
            own = list(engines.window_losses(engines.transformers_logits(load_model(source, torch.float32)), tokens))
            runtime = perplexity(own)
            if scheme.a_bits != FULL:
                own = list(engines.window_losses(engines.transformers_logits(load_with_engine_arithmetic(source)), tokens))
        engine, load = engines.ENGINES[name]
        theirs = list(engines.window_losses(load(work / name), tokens))
        result = {"storage": evidence["storage"], "engine": engine, "runtime": runtime, **compare(own, theirs)}
        rows.append({**row, **result})
    return rows


def perplexity(side: list[tuple[Tensor, Tensor]]) -> float:
    """Of windows that count alike."""
    return float(torch.stack([loss for loss, _ in side]).mean().exp())


def compare(own: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Perplexities over the same windows and the relative RMS difference of logits."""
    ours, other = perplexity(own), perplexity(theirs)
    difference = sum(float((a - b).square().sum(dtype=torch.float64)) for (_, a), (_, b) in zip(own, theirs))
    whole = sum(float(a.square().sum(dtype=torch.float64)) for _, a in own)
    return {
        "perplexity": other,
        "ours": ours,
        "ratio": other / ours,
        "logits": (difference / whole) ** 0.5,
        "match": abs(other / ours - 1) <= TOLERANCE,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The matrix scheme x target for docs: what matched by how much, what was refused why and what instead."""
    lines = ["| scheme | " + " | ".join(TARGETS) + " |", "| --- |" + " --- |" * len(TARGETS)]
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        cells = [_cell(row) for row in rows if row["scheme"] == scheme]
        lines.append(f"| {scheme} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["refused"] is not None:
        return f"no ({row['word']}): {row['instead'] or 'see the message'}"
    word = "" if row["match"] else "DIFFERS, "
    return f"{row['storage']}: {word}{row['ratio']:.4f} x, logits {row['logits']:.1e}"
