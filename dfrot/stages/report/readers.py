"""Reading the results that dfq's commands write into the table of a report, one reader per kind of result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfrot.files import read_json
from dfrot.stages.report.table import Column, Table

Reader = Callable[[Table, Any, Path], None]
"""`reader(table, value, file)`: adds the results in JSON `value`, read from `file`."""


def find_reader(value: Any) -> Reader | None:
    """The reader for a JSON value; None when it is no result of dfq."""
    if not isinstance(value, Mapping):
        return None
    if "recipe" in value and "stages" in value and "checks" in value:
        return _read_run
    kind = value.get("kind")
    if isinstance(kind, str) and kind in _READERS:
        return _READERS[kind]
    if "protocol" in value and isinstance(value.get("results"), list):
        return _read_perplexity
    return None


def _checkpoint(result: Mapping[str, Any]) -> str:
    """The last two parts of the checkpoint's path, or its name."""
    return "/".join(Path(str(result.get("name") or result["model"])).parts[-2:])


def _put_scheme(table: Table, checkpoint: str, result: Mapping[str, Any]) -> None:
    table.put(checkpoint, Column(("scheme",), "scheme"), result.get("scheme"))


def _rounded(value: float | None) -> float | None:
    """dfq eval ppl and kl sum in another order: values that agree to six digits are one number."""
    return None if value is None else float(f"{value:.6g}")


def _read_perplexity(table: Table, value: Any, file: Path, names: Sequence[str] = ()) -> None:
    """`dfq eval ppl`. names: of the checkpoints; empty takes them from the results."""
    for number, result in enumerate(value["results"]):
        checkpoint = names[number] if names else _checkpoint(result)
        protocol = result.get("protocol") or value["protocol"]
        protocol_id = str(protocol["id"])
        # the same measurement with logits of another dtype has another id; the title names what readers look for
        title = f"{value['dataset']['name'].rsplit('/', 1)[-1]} {protocol['windows']}x{protocol['seqlen']}"
        title += "" if protocol["logits_dtype"] == "bfloat16" else f" {protocol['logits_dtype']}"
        base = names[0] if names else _checkpoint(value["results"][0])
        windows = (base, str(protocol["token_ids"]), str(protocol["windows"]), str(protocol["seqlen"]))
        _put_scheme(table, checkpoint, result)
        table.put(checkpoint, Column(("ppl", protocol_id), f"perplexity, {title}"), result["perplexity"])
        if number:
            ratio = Column(("ratio", protocol_id, base), f"x {base}, {title}")
            table.put(checkpoint, ratio, result.get("ratio_to_first"))
            table.put(checkpoint, Column(("kl", *windows), f"KL from {base}, {title}"), _rounded(result.get("kl")))
            top1 = Column(("top1", *windows), f"top-1 as {base}, {title}", "%")
            table.put(checkpoint, top1, _rounded(result.get("top1")))
        table.put(checkpoint, Column(("disk",), "on disk", "B"), result.get("bytes_on_disk"))


def _read_run(table: Table, value: Any, file: Path) -> None:
    """`run.json` of `dfq run`, and the evaluation beside it."""
    evaluation = file.parent / "eval" / "stage.json"
    if evaluation.is_file():
        report = read_json(evaluation)["report"]
        models = [str(result["model"]) for result in report["results"]]
        paths = [value["model"] if name == "model" else f"{file.parent.name}/{name}" for name in models]
        _read_perplexity(table, report, evaluation, ["/".join(Path(path).parts[-2:]) for path in paths])
    checkpoint = f"{file.parent.name}/packed"
    table.put(checkpoint, Column(("draft", "draft.tau"), "draft tau"), value["metrics"].get("draft.tau"))
    if value["checks"]:
        passed = sum(bool(check["passed"]) for check in value["checks"])
        table.put(checkpoint, Column(("check",), "expected"), f"{passed} of {len(value['checks'])} met")


def _read_kl(table: Table, value: Any, file: Path) -> None:
    """`dfq eval kl`."""
    settings = value["settings"]
    title = f"{Path(value['dataset']['name']).name} {settings['windows']}x{settings['seqlen']}"
    base = _checkpoint(value["results"][0])
    windows = (base, str(value["dataset"]["token_ids"]), str(settings["windows"]), str(settings["seqlen"]))
    for result in value["results"][1:]:
        checkpoint = _checkpoint(result)
        _put_scheme(table, checkpoint, result)
        table.put(checkpoint, Column(("kl", *windows), f"KL from {base}, {title}"), _rounded(result["kl"]))
        q99 = Column(("kl", "q99", *windows), f"KL from {base} 99 %, {title}")
        table.put(checkpoint, q99, result["kl_quantiles"]["0.99"])
        top1 = Column(("top1", *windows), f"top-1 as {base}, {title}", "%")
        table.put(checkpoint, top1, _rounded(result["top1"]))


def _read_speed(table: Table, value: Any, file: Path) -> None:
    """`dfq eval speed`."""
    settings, results = value["settings"], value["results"]
    machine = [str(value["machine"].get(name)) for name in ("processor", "threads", "versions")]
    conditions = (*machine, str(settings["prefill"]), str(settings["decode"]))
    for result in results:
        checkpoint = _checkpoint(result)
        _put_scheme(table, checkpoint, result)
        for name in ("prefill", "decode"):
            column = Column(("speed", name, *conditions), f"{name} {settings[name]}", "/s")
            table.put(checkpoint, column, result[f"{name}_tokens_per_second"])
        if result.get("memory"):
            table.put(checkpoint, Column(("memory", *conditions), "memory", "B"), result["memory"].get("model"))
        table.put(checkpoint, Column(("disk",), "on disk", "B"), result["bytes_on_disk"])
    for name, figures in ((value.get("draft") or {}).get("shapes") or {}).items():
        checkpoint = _checkpoint(results[-1])
        table.put(checkpoint, Column(("draft", name, "x"), f"speedup, {name}"), figures.get("speedup"))
        table.put(checkpoint, Column(("draft", name, "tau"), f"tau, {name}"), figures.get("tau"))


def _read_tasks(table: Table, value: Any, file: Path) -> None:
    """`dfq eval tasks`."""
    settings = value["settings"]
    options = "".join(f" {name}={settings[name]}" for name in ("limit", "fewshot") if settings[name] is not None)
    for result in value["results"]:
        checkpoint = _checkpoint(result)
        _put_scheme(table, checkpoint, result)
        for task, scores in result["scores"].items():
            for metric, score in scores.items():
                column = Column(("task", task, metric, options, value["lm_eval"]), f"{task} {metric}{options}")
                table.put(checkpoint, column, score["value"])


_READERS: dict[str, Reader] = {"eval kl": _read_kl, "eval speed": _read_speed, "eval tasks": _read_tasks}
"""By the `kind` of the result."""
