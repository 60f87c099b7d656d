"""What was measured of a model, as dfq's own result files say it. Nothing is estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError, InputError
from dfrot.export.draft.settings import CHECK
from dfrot.export.serving.environments import DRAFT_ENGINES
from dfrot.files import read_json
from dfrot.inputs import open_model
from dfrot.publish.drafts import draft_facts
from dfrot.publish.published_folder import DRAFT, DRAFT_GGUF, PublishedFolder

RUN_EVALUATION = Path("eval") / "stage.json"
MAX_BYTES = 64 << 20  # of a result file


@dataclass
class MeasuredTable:
    """A table of the card."""

    title: str
    """What was measured."""
    columns: tuple[str, ...]
    """Headings."""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    """Cells as text."""

    def markdown(self) -> str:
        """The table with its title above."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        return f"{self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def measured_tables(subject: PublishedFolder, files: Sequence[Path]) -> list[MeasuredTable]:
    """The tables of result files, of the run of a recipe that the folder is part of, and of reports of
    `dfq draft export --check` that lie in a draft's folder.

    Raises InputError for a file that holds no result, or none of this folder."""
    tables = []
    found = [subject.folder.absolute().parent / RUN_EVALUATION]
    if subject.is_draft:
        found += [file for file in sorted(subject.folder.glob("*.json")) if _is_report(file)]
    sources = [*files, *(file for file in found if file.is_file() and file not in files)]
    for file in sources:
        value = _read(file)
        table = _table(subject, value, file)
        if table is not None:
            tables.append(table)
        elif file in files:
            raise InputError(
                f"{file}: holds no result of {subject.folder} (or of the checkpoint that it was exported from); leave "
                "it out of `results`",
                field="results",
                file=file,
            )
    return tables


def _is_report(file: Path) -> bool:
    """Whether a file of a draft's folder is a report of acceptance. Damaged files are the checks' business."""
    try:
        return _read(file).get("kind") == CHECK
    except DfqError:
        return False


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file}: is no result file", field="results", file=file)
    value = read_json(file)
    if isinstance(value, dict) and isinstance(report := value.get("report"), dict):
        return report
    return value if isinstance(value, dict) else {}


def _table(subject: PublishedFolder, value: dict[str, Any], file: Path) -> MeasuredTable | None:
    """The table of one result; None where it is not about the subject. Raises InputError for a damaged one."""
    try:
        if value.get("kind") == "export check":
            return _engines(subject, value)
        if value.get("kind") == CHECK:
            return _acceptance(subject, value)
        results = value.get("results")
        if not isinstance(results, list) or not results:
            return None
        number = next((at for at, result in enumerate(results) if _is_subject(subject, result, file)), None)
        if number is None:
            return None
        if value.get("kind") == "eval tasks":
            return _tasks(value, number)
        return _perplexity(value, number) if "protocol" in value else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{file}: is damaged ({type(error).__name__}); measure again", field="results", file=file
        ) from None


def _is_subject(subject: PublishedFolder, result: dict[str, Any], file: Path) -> bool:
    """Whether a row is about the folder: the folder itself, the checkpoint that it was exported from, or the folder of
    that name in the run of the recipe whose evaluation `file` is."""
    path = Path(str(result["model"]))
    inside = file.parent.parent / path  # of a run's evaluation, which names folders of the run
    for place in (path, inside):
        if place.is_dir():
            if place.resolve() == subject.folder.resolve():
                return True
            source = subject.record.get("request", {}).get("model") if subject.record.get("kind") == "export" else None
            try:
                if source is not None and open_model(place).digest() == source:
                    return True
            except DfqError:
                continue
    return False


def _scheme(result: dict[str, Any]) -> str:
    return str(result.get("scheme") or "16 bits")


def _perplexity(value: dict[str, Any], number: int) -> MeasuredTable:
    """Of `dfq eval ppl`: the first checkpoint and the subject."""
    results, protocol = value["results"], value["protocol"]
    dataset = Path(str(value["dataset"]["name"])).name
    title = f"Perplexity on {dataset}, {protocol['windows']} windows of {protocol['seqlen']} tokens"
    columns = ("model", "scheme", "perplexity", "ratio", "95 % interval", "KL", "top-1", "weights on disk")
    table = MeasuredTable(f"{title} (`{protocol['id']}`).", columns)
    for at in sorted({0, number}):
        row = results[at]
        ratio, interval = row["ratio_to_first"], row.get("ratio_ci")
        limits = f"{interval[0]:.4f} .. {interval[1]:.4f}" if at and interval else ""
        kl = "" if row.get("kl") is None else f"{row['kl']:.4f}"
        top = "" if row.get("top1") is None else f"{row['top1']:.2%}"
        name = "this model" if at == number else "base"
        figures = (f"{row['perplexity']:.4f}", f"{ratio:.4f}", limits, kl, top, _size(row["bytes_on_disk"]))
        table.rows.append((name, _scheme(row), *figures))
    return table


def _tasks(value: dict[str, Any], number: int) -> MeasuredTable:
    """Of `dfq eval tasks`."""
    results, settings = value["results"], value["settings"]
    more = "".join(f", {key} {settings[key]}" for key in ("limit", "fewshot") if settings.get(key) is not None)
    table = MeasuredTable(f"Tasks (lm-eval {value['lm_eval']}{more}).", ("task", "metric", "base", "this model"))
    for task, scores in results[number]["scores"].items():
        for metric, score in scores.items():
            base = results[0]["scores"].get(task, {}).get(metric) if number else None
            before = "" if base is None else f"{base['value']:.4f}"
            table.rows.append((str(task), str(metric), before, f"{score['value']:.4f}"))
    return table


def _engines(subject: PublishedFolder, value: dict[str, Any]) -> MeasuredTable | None:
    """Of `dfq export --check` on the very checkpoint that was exported."""
    request = subject.record.get("request", {})
    if value["request"]["model"] != request.get("model"):
        return None
    columns = ("engine", "storage", "perplexity", "dfq's", "ratio", "logits, relative RMS")
    table = MeasuredTable("Loaded by the engine and compared with dfq.", columns)
    for row in value["rows"]:
        same = all(row[key] == subject.record.get(key) for key in ("target", "scheme"))
        if same and row["refused"] is None:
            figures = (f"{row['perplexity']:.4f}", f"{row['ours']:.4f}", f"{row['ratio']:.4f}")
            table.rows.append((str(row["engine"]), str(row["storage"]), *figures, f"{row['logits']:.1e}"))
    return table if table.rows else None


def _acceptance(subject: PublishedFolder, value: dict[str, Any]) -> MeasuredTable | None:
    """Of `dfq draft export --check` on the very weights: the engines that load the subject's format, or all of them for
    a draft of dfq."""
    if not subject.is_draft or not value["weights"] or value["weights"] != draft_facts(subject).weights:
        return None
    form = "gguf" if subject.format == DRAFT_GGUF else subject.format
    count, tokens, chain = value["prompts"], value["new_tokens"], value["chain"]
    table = MeasuredTable(
        f"Acceptance length (tokens per pass of the target) in engines, beside dfq's on the same text: {count} prompts "
        f"of {value['dataset']}, greedy, {tokens} new tokens each, chains of {chain}.",
        ("engine", "acceptance length", "dfq's", "ratio"),
    )
    for row in value["rows"]:
        reads = subject.format == DRAFT or form in DRAFT_ENGINES[row["engine"]].formats
        if reads and row["tau"] is not None:
            versions = ", ".join(f"{name} {text}" for name, text in (row.get("versions") or {}).items())
            name = f"{row['engine']} ({versions})" if versions else str(row["engine"])
            table.rows.append((name, f"{row['tau']:.3f}", f"{row['replayed']:.3f}", f"{row['ratio']:.3f}"))
    return table if table.rows else None


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
