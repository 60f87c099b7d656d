"""`dfq report`: results of several runs as one table. Two numbers share a column only if they were measured alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfrot.errors import InputError
from dfrot.files import read_json

DEEPEST = 3  # folders below the one given
MOST = 64 << 20  # bytes of a result


@dataclass
class Column:
    """key decides what shares the column; title is shown; unit says how numbers look ("", "%", "B", "/s")."""

    key: tuple[str, ...]
    title: str
    unit: str = ""


@dataclass
class Table:
    """rows: (checkpoint, {column key: value}); columns in the order they were met, by group."""

    columns: dict[tuple[str, ...], Column] = field(default_factory=dict)
    rows: list[tuple[str, dict[tuple[str, ...], Any]]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def put(self, label: str, column: Column, value: Any) -> None:
        """A second, different value of the same column is a row of its own: nothing is averaged or replaced."""
        if value is None:
            return
        self.columns.setdefault(column.key, column)
        for name, cells in self.rows:
            if name == label and cells.get(column.key, value) == value:
                cells[column.key] = value
                return
        self.rows.append((label, {column.key: value}))

    def ordered(self) -> list[Column]:
        order = ("scheme", "ppl", "ratio", "kl", "top1", "task", "speed", "draft", "memory", "disk", "check")
        return sorted(self.columns.values(), key=lambda column: order.index(column.key[0]))

    def to_dict(self) -> dict[str, Any]:
        """JSON: columns, rows of named cells, and the files that were read."""
        columns = self.ordered()
        for number, column in enumerate(columns):
            if column.title in {one.title for one in columns[:number]}:
                column.title += f" ({number})"  # measured otherwise in what the title does not say
        rows = [{"checkpoint": name, **{c.title: cells.get(c.key) for c in columns}} for name, cells in self.rows]
        return {"columns": [column.title for column in columns], "rows": rows, "files": self.files}


def collect_results(places: Sequence[Path]) -> Table:
    """Everything that dfq measured in files and folders (`run.json`, results of dfq eval --out and dfq compare).

    Raises InputError for a place without any."""
    table = Table()
    for place in places:
        found = 0
        for file in _files(place):
            value = read_json(file)
            reader = _reader(value)
            if reader is not None:
                reader(table, value, file)
                table.files.append(str(file))
                found += 1
        if not found:
            raise InputError(f"{place}: holds no result; give a folder of dfq run, or files of dfq eval --out")
    return table


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    if not place.is_dir():
        raise InputError(f"{place}: no such file or folder")
    for depth in range(DEEPEST):
        for file in sorted(place.glob("/".join(["*"] * depth + ["*.json"]))):
            hidden = any(part.startswith(".") for part in file.relative_to(place).parts)
            if not hidden and file.name not in _SKIPPED and file.stat().st_size <= MOST:
                yield file


_SKIPPED = {"stage.json", "recipe.json", "config.json", "tokenizer.json", "tokenizer_config.json", "request.json",
            "generation_config.json", "model.safetensors.index.json", "draft.json"}  # fmt: skip


def _reader(value: Any) -> Callable[[Table, Any, Path], None] | None:
    if not isinstance(value, Mapping):
        return None
    if "recipe" in value and "stages" in value and "checks" in value:
        return _run
    kind = value.get("kind")
    if isinstance(kind, str) and kind in _READERS:
        return _READERS[kind]
    if "protocol" in value and isinstance(value.get("results"), list):
        return _ppl
    return None


def _label(result: Mapping[str, Any]) -> str:
    """The last two parts of the checkpoint's path, or its name."""
    return "/".join(Path(str(result.get("name") or result["model"])).parts[-2:])


def _scheme(table: Table, label: str, result: Mapping[str, Any]) -> None:
    table.put(label, Column(("scheme",), "scheme"), result.get("scheme"))


def _ppl(table: Table, value: Any, file: Path, labels: Sequence[str] = ()) -> None:
    for number, result in enumerate(value["results"]):
        label = labels[number] if labels else _label(result)
        protocol = result.get("protocol") or value["protocol"]
        mark = str(protocol["id"])
        # the same measurement in another dtype of logits has another id; name what people look for
        title = f"{value['dataset']['name'].rsplit('/', 1)[-1]} {protocol['windows']}x{protocol['seqlen']}"
        title += "" if protocol["logits_dtype"] == "bfloat16" else f" {protocol['logits_dtype']}"
        base = labels[0] if labels else _label(value["results"][0])
        alike = (base, str(protocol["token_ids"]), str(protocol["windows"]), str(protocol["seqlen"]))
        _scheme(table, label, result)
        table.put(label, Column(("ppl", mark), f"perplexity, {title}"), result["perplexity"])
        if number:
            table.put(label, Column(("ratio", mark, base), f"x {base}, {title}"), result.get("ratio_to_first"))
            table.put(label, Column(("kl", *alike), f"KL from {base}, {title}"), _rounded(result.get("kl")))
            table.put(label, Column(("top1", *alike), f"top-1 as {base}, {title}", "%"), _rounded(result.get("top1")))
        table.put(label, Column(("disk",), "on disk", "B"), result.get("bytes_on_disk"))


def _rounded(value: float | None) -> float | None:
    """dfq eval ppl and kl sum in another order: what agrees to six digits is one number."""
    return None if value is None else float(f"{value:.6g}")


def _run(table: Table, value: Any, file: Path) -> None:
    evaluation = file.parent / "eval" / "stage.json"
    if evaluation.is_file():
        report = read_json(evaluation)["report"]
        names = [str(result["model"]) for result in report["results"]]
        labels = [value["model"] if name == "model" else f"{file.parent.name}/{name}" for name in names]
        _ppl(table, report, evaluation, ["/".join(Path(label).parts[-2:]) for label in labels])
    label = f"{file.parent.name}/packed"
    for name in ("draft.tau",):
        table.put(label, Column(("draft", name), "draft tau"), value["metrics"].get(name))
    if value["checks"]:
        passed = sum(bool(row["passed"]) for row in value["checks"])
        table.put(label, Column(("check",), "expected"), f"{passed} of {len(value['checks'])} met")


def _kl(table: Table, value: Any, file: Path) -> None:
    settings = value["settings"]
    title = f"{Path(value['dataset']['name']).name} {settings['windows']}x{settings['seqlen']}"
    base = _label(value["results"][0])
    mark = (base, str(value["dataset"]["token_ids"]), str(settings["windows"]), str(settings["seqlen"]))
    for result in value["results"][1:]:
        label = _label(result)
        _scheme(table, label, result)
        table.put(label, Column(("kl", *mark), f"KL from {base}, {title}"), _rounded(result["kl"]))
        table.put(label, Column(("kl", "q99", *mark), f"KL from {base} 99 %, {title}"), result["kl_quantiles"]["0.99"])
        table.put(label, Column(("top1", *mark), f"top-1 as {base}, {title}", "%"), _rounded(result["top1"]))


def _speed(table: Table, value: Any, file: Path) -> None:
    settings, results = value["settings"], value["results"]
    where = [str(value["machine"].get(name)) for name in ("processor", "threads", "versions")]
    mark = (*where, str(settings["prefill"]), str(settings["decode"]))
    for result in results:
        label = _label(result)
        _scheme(table, label, result)
        for name, size in (("prefill", settings["prefill"]), ("decode", settings["decode"])):
            column = Column(("speed", name, *mark), f"{name} {size}", "/s")
            table.put(label, column, result[f"{name}_tokens_per_second"])
        if result.get("memory"):
            table.put(label, Column(("memory", *mark), "memory", "B"), result["memory"].get("model"))
        table.put(label, Column(("disk",), "on disk", "B"), result["bytes_on_disk"])
    for name, found in ((value.get("draft") or {}).get("shapes") or {}).items():
        label = _label(results[-1])
        table.put(label, Column(("draft", name, "x"), f"speedup, {name}"), found.get("speedup"))
        table.put(label, Column(("draft", name, "tau"), f"tau, {name}"), found.get("tau"))


def _tasks(table: Table, value: Any, file: Path) -> None:
    settings = value["settings"]
    how = "".join(f" {name}={settings[name]}" for name in ("limit", "fewshot") if settings[name] is not None)
    for result in value["results"]:
        label = _label(result)
        _scheme(table, label, result)
        for task, scores in result["scores"].items():
            for metric, score in scores.items():
                column = Column(("task", task, metric, how, value["lm_eval"]), f"{task} {metric}{how}")
                table.put(label, column, score["value"])


_READERS: dict[str, Callable[[Table, Any, Path], None]] = {"eval kl": _kl, "eval speed": _speed, "eval tasks": _tasks}
