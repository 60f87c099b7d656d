"""How a folder was made: the commands, as far as its record holds them."""

from __future__ import annotations

import shlex
from typing import Any

from dfrot.errors import DfqError
from dfrot.publish.drafts import EXPORTS, draft_facts
from dfrot.publish.published_folder import DRAFT_GGUF, PACKED, PublishedFolder
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.settings import default_of, settings_of
from dfrot.stages.quantize.settings import QuantizeSettings

TABLES = ("embed", "head")


def made_by(subject: PublishedFolder) -> list[str]:
    """The commands that made the folder. Options that the record does not hold are left out, so that they stand for
    themselves; an empty list where the record says nothing."""
    record = subject.record
    base = subject.base or "BASE"
    kind, lines = record.get("kind"), []
    lineage = record.get("lineage")
    rotation = lineage.get("rotation") if isinstance(lineage, dict) else None
    model = base
    if isinstance(rotation, dict):
        lines.append(f"dfq rotate --model {shlex.quote(base)}{_rotate_options(rotation)} --out rotated")
        model = "rotated"
    if subject.format == PACKED and kind in ("quantize", "tune"):
        return lines + _quantize(record, model, "packed")
    if kind == "export":
        quantization = lineage.get("quantization") if isinstance(lineage, dict) else None
        algorithm = quantization.get("algorithm") if isinstance(quantization, dict) else None
        calibrated = isinstance(quantization, dict) and quantization.get("calibration") is not None
        option = f" --algorithm {algorithm}" if isinstance(algorithm, str) else ""
        scheme = str(record.get("scheme"))
        lines += [f"dfq calibrate --model {model} --out calibration"] if calibrated else []
        calibration = " --calibration calibration" if calibrated else ""
        lines.append(f"dfq quantize --model {model}{calibration} --scheme {scheme}{option} --out packed")
        return [*lines, f"dfq export --model packed --to {record.get('target')} --out export"]
    if subject.is_draft:
        return _draft(subject, base)
    return lines


def _draft(subject: PublishedFolder, base: str) -> list[str]:
    """`dfq draft train`, and of an export `dfq draft export`, on the packed checkpoint behind what an engine serves.
    Nothing for a draft that dfq did not export."""
    facts = draft_facts(subject)
    if subject.format not in EXPORTS:
        return [f"dfq draft train --model {shlex.quote(base)}{facts.options()} --out draft"]
    if subject.record.get("kind") != "draft export":
        return []
    form = "gguf" if subject.format == DRAFT_GGUF else subject.format
    return [
        f"dfq draft train --model packed{facts.options()} --out draft",
        f"dfq draft export --model packed --draft draft --format {form} --out exported",
    ]


def _rotate_options(rotation: dict[str, Any]) -> str:
    method, r1 = rotation.get("method"), rotation.get("r1")
    seed = r1.get("seed") if isinstance(r1, dict) else None
    text = f" --method {method}" if isinstance(method, str) else ""
    return text + (f" --seed {seed}" if isinstance(seed, int) and seed else "")


def _quantize(record: dict[str, Any], model: str, out: str) -> list[str]:
    """`dfq calibrate` and `dfq quantize` of a packed checkpoint; of a tuned one also `dfq tune`."""
    request = record.get("request")
    settings = request.get("settings") if isinstance(request, dict) else None
    if record.get("kind") == "tune" or not isinstance(request, dict) or not isinstance(settings, dict):
        tuned = [f"dfq tune --model {out} --out tuned"] if record.get("kind") == "tune" else []
        return [f"dfq quantize --model {model} --out {out}", *tuned]
    calibrated = request.get("calibration") is not None
    lines = [f"dfq calibrate --model {model} --out calibration"] if calibrated else []
    calibration = " --calibration calibration" if calibrated else ""
    return [*lines, f"dfq quantize --model {model}{calibration}{_options(settings)} --out {out}"]


def _options(settings: dict[str, Any]) -> str:
    """The options of `dfq quantize` that differ from its defaults."""
    words: list[str] = []
    known = settings_of(QuantizeSettings)
    for name, value in settings.items():
        if name not in known:
            continue
        flag, default = known[name].option or "--" + name.replace("_", "-"), default_of(QuantizeSettings, name)
        if name == "scheme":
            text = _scheme_name(value)
            words += [flag, text] if text else []
        elif name in TABLES:
            text = _table_name(value)
            words += [flag, text] if text else []
        elif value is None or value == default or (isinstance(value, list) and tuple(value) == default):
            continue
        elif isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list):
            words += [word for item in value or [""] for word in (flag, str(item))]
        else:
            words += [flag, str(value)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _scheme_name(value: Any) -> str:
    try:
        return QuantScheme.from_dict(value).name if isinstance(value, dict) else ""
    except (TypeError, DfqError):
        return ""


def _table_name(value: Any) -> str:
    try:
        table = TableScheme(**value) if isinstance(value, dict) else TableScheme()
    except (TypeError, DfqError):
        return ""
    return table.name if table.quantized else ""
