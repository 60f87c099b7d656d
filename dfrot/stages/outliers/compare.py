"""`dfq outliers A B`: two checkpoints on the same tokens, before and after a rotation or of two models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.errors import MismatchError
from dfrot.files import read_json, write_json
from dfrot.outliers.report import side_by_side as sidebyside
from dfrot.stage_folder import Progress, open_stage, silent
from dfrot.stages.outliers.measure import FORMAT, PAGE, REPORT, OutlierSettings, measure, prepare
from dfrot_kernels.native import release_memory

KIND = "outliers-compare"


def compare(
    first: Path,
    second: Path,
    out: Path | None,
    settings: OutlierSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Both reports ("a", "b") and the table of differences ("rows"); published in folder `out` unless None.

    Raises MismatchError when the two tokenizers read the text differently."""
    a, tokens, source, decode = prepare(first, settings)
    b, others, _, decode_b = prepare(second, settings)
    if tokens.shape != others.shape or not bool((tokens == others).all()):
        raise MismatchError(f"{second}: its tokenizer reads {settings.dataset} differently from that of {first}")

    def both() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        left, left_maps = measure(a, tokens, source, decode, settings, progress)
        release_memory()
        right, right_maps = measure(b, tokens, source, decode_b, settings, progress)
        report = {
            "format": FORMAT,
            "models": [left["model"], right["model"]],
            "rows": sidebyside.difference_rows(left, right),
            "a": left,
            "b": right,
        }
        return report, [left_maps, right_maps]

    if out is None:
        return both()[0]
    digests = [a.source.digest(), b.source.digest()]
    request = {"models": digests, "data": source, "settings": asdict(settings)}
    with open_stage(out, KIND, request, resume=resume, overwrite=overwrite) as stage:
        if not stage.finished:
            report, maps = both()
            write_json(stage.folder / REPORT, report)
            sidebyside.write_comparison(stage.folder, report, maps)
            stage.publish({"report": REPORT, "page": PAGE})
            return report
    return dict(read_json(out / REPORT))
