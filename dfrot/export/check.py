"""`dfq export --check`: every scheme into every format, loaded by its engine and compared with dfq's own numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import UnsupportedError
from dfrot.evaluate.tokens import WindowReader
from dfrot.export import engines
from dfrot.export.engine_arithmetic import load_with_engine_arithmetic
from dfrot.export.fit import SCHEMES, fit
from dfrot.export.run import export
from dfrot.export.targets import TARGETS, ExportTarget, engine_activation_clip
from dfrot.files import write_bytes, write_json
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

KIND = "export check"
CALIBRATION_WINDOWS = 8
TOLERANCE = 0.005  # relative difference of perplexity up to which an export matches

WindowLosses = list[tuple[Tensor, Tensor]]
"""(loss, logits) per window, see `engines.losses_and_logits`."""


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
    """Quantize a 16-bit `model` by RTN under every scheme, export it to every target, load, compare. A packed model is
    checked as it is, under its own scheme.

    Writes `check.json` and `check.md` into `out`; returns {"tolerance", "rows"}. Keys of a row:

    - scheme, target
    - refused: one line, or None; word: the same in a word or two; instead: the nearest scheme that fits
    - storage, engine
    - perplexity of the engine; ours: dfq's, both in float32 around the same integers (with the engines' arithmetic
      where activations are quantized), in bfloat16 around FP4; ratio of the two; match: whether they are within 0.5 %
    - logits: relative RMS difference
    - runtime: perplexity of dfq's own kernels in float32

    Raises UnsupportedError for simulated checkpoints and for those with online rotations.
    """
    refuse_inputs(out, model)
    checkpoint = open_model(model)
    config = DfqConfig.of(checkpoint.config)
    if config is not None and (config.scheme is None or config.fake):
        problem = "is simulated" if config.scheme is not None else "expects online rotations"
        raise UnsupportedError(
            f"{model}: {problem}; give a packed checkpoint, or a 16-bit one of dfq rotate with `online=False`",
            field="online",
        )
    own_scheme = config.scheme if config is not None else None
    names = schemes if own_scheme is None else (own_scheme.name,)
    tokens = WindowReader(load_text(dataset, "test", load_tokenizer(model)), seqlen, windows).read(model).windows
    request = {"model": checkpoint.digest(), "dataset": dataset, "shape": list(tokens.shape)}
    rows: list[dict[str, Any]] = []
    with open_stage(out, KIND, request, False, overwrite) as stage:
        work = stage.folder / "work"
        for number, name in enumerate(names):
            progress("check", number, len(names))
            scheme = QuantScheme.parse(name)
            source = model
            if own_scheme is None:
                calibration = _calibration(model, scheme, work / "calibration", dataset, seqlen)
                source = quantize_by_rounding(model, scheme, work / name / "dfq", calibration)
            rows += _check_scheme(source, scheme, work / name, tokens)
            shutil.rmtree(work / name, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        write_json(stage.folder / "check.json", rows)
        write_bytes(stage.folder / "check.md", markdown(rows).encode())
        stage.publish({"tolerance": TOLERANCE, "rows": rows})
    return read_record(out, KIND)


def _calibration(model: Path, scheme: QuantScheme, out: Path, dataset: str, seqlen: int) -> Path | None:
    """Statistics of the inputs, for schemes that have constants from there; made once."""
    if not QuantizeSettings(scheme, algorithm="rtn").needs_calibration():
        return None
    if not out.exists():
        calibrate(model, out, CalibrateSettings(dataset, samples=CALIBRATION_WINDOWS, seqlen=seqlen))
    return out


def quantize_by_rounding(model: Path, scheme: QuantScheme, out: Path, calibration: Path | None = None) -> Path:
    """`model` quantized by RTN under `scheme` into `out`, symmetric activations clipped as engines do. Returns the
    folder, which is `model` itself for 16 bits throughout. calibration: for NVFP4 activations."""
    if scheme.w_bits == FULL and scheme.a_bits == FULL and scheme.kv_bits == FULL:
        return model
    if scheme.number_format != INTEGERS:
        quantize(model, calibration, out, QuantizeSettings(scheme, algorithm="rtn"))
        return out
    if scheme.a_bits != FULL and scheme.a_sym:
        scheme = replace(scheme, a_clip=engine_activation_clip(scheme.a_bits))
    quantize(model, None, out, QuantizeSettings(scheme, algorithm="rtn", mse_clip=False))
    return out


def _check_scheme(source: Path, scheme: QuantScheme, work: Path, tokens: Tensor) -> list[dict[str, Any]]:
    """The rows of one scheme, one per target."""
    reference: WindowLosses = []  # computed for the first target that fits
    runtime_perplexity = 0.0
    rows = []
    for name, target in TARGETS.items():
        row: dict[str, Any] = {"scheme": scheme.name, "target": name, "refused": None, "word": None, "instead": None}
        try:
            record = export(source, name, work / name)
        except UnsupportedError as error:
            rows.append(row | _refusal(target, scheme, str(error).removeprefix(f"{source}: ").partition(";")[0]))
            continue
        if not reference:
            reference = _transformers_losses(load_model(source, torch.float32), tokens)
            runtime_perplexity = perplexity(reference)
            if scheme.number_format != INTEGERS:  # the arithmetic is the engines', who decode to bfloat16
                reference = _transformers_losses(load_model(source, torch.bfloat16), tokens)
            elif scheme.a_bits != FULL:
                reference = _transformers_losses(load_with_engine_arithmetic(source), tokens)
        engine = engines.ENGINES[name]
        exported = list(engines.losses_and_logits(engine.load(work / name), tokens))
        result = {"storage": record["storage"], "engine": engine.name, "runtime": runtime_perplexity}
        rows.append({**row, **result, **compare(reference, exported)})
    return rows


def _transformers_losses(model: Any, tokens: Tensor) -> WindowLosses:
    return list(engines.losses_and_logits(engines.transformers_logits(model), tokens))


def _refusal(target: ExportTarget, scheme: QuantScheme, message: str) -> dict[str, Any]:
    """Why the target cannot hold the scheme; `message` of the exporter where it is the checkpoint that does not fit."""
    fitted = fit(target, scheme)
    return {
        "refused": fitted.reason or message,
        "word": fitted.short_reason or message,
        "instead": fitted.instead,
    }


def perplexity(losses: WindowLosses) -> float:
    """Perplexity of windows of equal length."""
    return float(torch.stack([loss for loss, _ in losses]).mean().exp())


def compare(reference: WindowLosses, exported: WindowLosses) -> dict[str, Any]:
    """Perplexities over the same windows and the relative RMS difference of their logits."""
    ours, theirs = perplexity(reference), perplexity(exported)
    difference = sum(float((a - b).square().sum(dtype=torch.float64)) for (_, a), (_, b) in zip(reference, exported))
    energy = sum(float(logits.square().sum(dtype=torch.float64)) for _, logits in reference)
    return {
        "perplexity": theirs,
        "ours": ours,
        "ratio": theirs / ours,
        "logits": (difference / energy) ** 0.5,
        "match": abs(theirs / ours - 1) <= TOLERANCE,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The matrix scheme x target for the docs: how closely exports match, or why they are refused and what instead."""
    lines = ["| scheme | " + " | ".join(TARGETS) + " |", "| --- |" + " --- |" * len(TARGETS)]
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        cells = [_cell(row) for row in rows if row["scheme"] == scheme]
        lines.append(f"| {scheme} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["refused"] is not None:
        return f"no ({row['word']}): {row['instead'] or 'see the message'}"
    warning = "" if row["match"] else "DIFFERS, "
    return f"{row['storage']}: {warning}{row['ratio']:.4f} x, logits {row['logits']:.1e}"
