"""The matrix of engines: every export of a model, run by every engine that is set up, as a table for the docs.

    python recipes/engines/matrix.py MODEL FOLDER [DATASET [CASE ...]]

MODEL is rotated without online parts, rounded to nearest under the schemes of CASES, exported and checked, as
`dfq export DIR --check` does it. FOLDER keeps a report for each case: what is there is not run again. The table is
printed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfrot.errors import DfqError
from dfrot.export.check import quantize_by_rounding
from dfrot.export.run import export
from dfrot.export.serving.check import check_engines
from dfrot.export.settings import ExportCheckSettings
from dfrot.files import write_json
from dfrot.hub import resolve_model
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

R4_BLOCK = 256
WIDTH = 150  # characters of a refusal in the table
ENGINES = Path("build/engines")


@dataclass(frozen=True)
class Case:
    """An export whose engines are run."""

    scheme: str
    """What the weights are quantized to."""
    to: str
    """Format."""
    r4: bool = False
    """With the online rotation R4."""

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.scheme}{'-r4' if self.r4 else ''}.{self.to}"


CT, GPTQ, GGUF = "compressed-tensors", "gptq", "gguf"
CASES = (
    Case("w4a16-g32", CT),
    Case("w4a4-sym", CT),
    Case("w4a8-sym", CT),
    Case("w8a8-sym", CT),
    Case("w4a16", CT),
    Case("w4a16-g32-wasym", CT),
    Case("w8a16-g32", CT),
    Case("w4a16-g32", GPTQ),
    Case("w4a16-g32-wasym", GPTQ),
    Case("w8a16-g32", GPTQ),
    Case("w4a16-g32", GGUF),
    Case("w4a16-g32-wasym", GGUF),
    Case("w5a16-g32", GGUF),
    Case("w5a16-g32-wasym", GGUF),
    Case("w8a16-g32", GGUF),
    Case("mxfp4a16", CT),
    Case("mxfp4", CT),
    Case("nvfp4a16", CT),
    Case("nvfp4", CT),
    Case("w4a16-g32", CT, r4=True),
)


def main(model: str, folder: str, dataset: str = "stdlib", *names: str) -> None:
    """Run what is missing, then print the table."""
    out = Path(folder)
    torch.set_num_threads(1)  # engines get one thread as well; two only wait for each other on a busy machine
    for case in CASES:
        report = out / f"{case.name}.json"
        if report.exists() or (names and case.name not in names):
            continue
        sys.stderr.write(f"{case.name}\n")
        write_json(report, run(case, resolve_model(model), out, dataset))
    sys.stdout.write(
        table([json.loads(path.read_text()) for case in CASES if (path := out / f"{case.name}.json").exists()])
    )


def run(case: Case, model: Path, out: Path, dataset: str) -> dict[str, Any]:
    """The report of one case; its checkpoints are deleted."""
    rotated = out / ("rotated-r4" if case.r4 else "rotated")
    if not rotated.exists():
        r4 = {"r4_block": R4_BLOCK} if case.r4 else {}
        online = {"online": case.r4, "align": False, "transform": ("none",)} if case.r4 else {"online": False}
        rotate(model, rotated, RotateSettings(method="hadamard", dataset=dataset, gate=False, **online, **r4))
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    scheme = QuantScheme.parse(case.scheme)
    try:
        calibration = None
        if case.scheme == "nvfp4":
            calibration = work / "calibration"
            calibrate(rotated, calibration, CalibrateSettings(dataset, samples=8, seqlen=256))
        packed = quantize_by_rounding(rotated, scheme, work / "packed", calibration)
        record = export(packed, case.to, work / "export", online_r4=case.r4)
        settings = ExportCheckSettings(dataset=dataset, engines=ENGINES)
        report = check_engines(work / "export", (), settings)
    except DfqError as error:
        return {
            "case": case.name,
            "scheme": case.scheme,
            "to": case.to,
            "r4": case.r4,
            "refused": str(error),
            "rows": [],
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    facts = {"case": case.name, "scheme": case.scheme, "to": case.to, "r4": case.r4, "storage": record["storage"]}
    return {**facts, "rows": report["rows"]}


def table(reports: list[dict[str, Any]]) -> str:
    """The matrix in Markdown: a row per export, a column per engine, versions below."""
    engines = list(dict.fromkeys(row["engine"] for report in reports for row in report["rows"]))
    lines = ["| scheme | stored as | " + " | ".join(engines) + " |", "| --- |" + " --- |" * (len(engines) + 1)]
    versions: dict[str, str] = {}
    for report in reports:
        rows = {row["engine"]: row for row in report["rows"]}
        name = report["scheme"] + (" with R4" if report["r4"] else "")
        cells = [cell(rows[engine]) if engine in rows else "" for engine in engines]
        lines.append(f"| {name} | {report.get('storage', report.get('refused'))} | " + " | ".join(cells) + " |")
        for engine, row in rows.items():
            if row.get("versions"):
                versions[engine] = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
    return "\n".join([*lines, "", *(f"- *{name}*: {text}" for name, text in versions.items()), ""])


def shortened(detail: str) -> str:
    """An engine's last line without the modules of its exception, at most WIDTH characters."""
    text = re.sub(r"^(\w+\.)+(?=\w)", "", detail).replace("|", "/")
    return text if len(text) <= WIDTH else text[:WIDTH].rsplit(" ", 1)[0] + " ..."


def cell(row: dict[str, Any]) -> str:
    """What an engine made of an export."""
    if row["verdict"] == "refused":
        return f"**refused**: {shortened(row['detail'])}"
    if row["ratio"] is None:
        return str(row["verdict"])
    kernels = [name.split(" on ")[-1] for name in row["linears"] if "Embedding" not in name]
    verdict = row["verdict"] if row["kept"] else f"**{row['verdict']}**"
    share = "" if row["share"] is None else f", rounding {row['share']:.0%}"
    return f"{verdict}: x {row['ratio']:.4f}{share} ({', '.join(kernels)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
