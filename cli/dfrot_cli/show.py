"""The only place that prints: tables and results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

BAR_AFTER = 2.0  # seconds; short work needs no bar
QUIET_EVERY = 15.0  # seconds between lines when stderr is a file


class _Rate(ProgressColumn):
    """Units per second, or seconds per unit when a unit is slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback for the library: a bar with rate and ETA on a terminal, a line now and then in a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), _Rate())
    bars = Progress(
        *columns, TextColumn("eta"), TimeRemainingColumn(elapsed_when_finished=True), console=console, transient=True
    )
    tasks: dict[str, Any] = {}
    waiting = threading.Timer(BAR_AFTER, bars.start)
    waiting.daemon = True
    waiting.start()

    def report(label: str, done: int, total: int) -> None:
        for name in [name for name in tasks if name != label]:
            bars.remove_task(tasks.pop(name))  # a single bar: the library does one thing at a time
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done, total=total)

    try:
        yield report
    finally:
        waiting.cancel()
        waiting.join()  # a bar that is just starting must not outlive the block
        bars.stop()


def _lines() -> Callable[[str, int, int], None]:
    label, begin, first, last_line = "", 0.0, 0, time.monotonic()

    def report(name: str, done: int, total: int) -> None:
        nonlocal label, begin, first, last_line
        now = time.monotonic()
        if name != label:
            label, begin, first = name, now, done
        if now - last_line < QUIET_EVERY:
            return
        last_line = now
        units, elapsed = done - first, now - begin
        eta = f", {units / elapsed:.2f}/s, eta {(total - done) * elapsed / units:.0f} s" if units and elapsed else ""
        note(f"{label}: {done}/{total}{eta}")

    return report


def note(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


def resolved(record: Mapping[str, Any]) -> None:
    """On stderr, how a folder was read that left something open. record: a stage's."""
    for text in record.get("resolved", ()):
        note(f"note: {text}")


def notes(results: Sequence[Mapping[str, Any]]) -> None:
    """On stderr, what should be known of checkpoints. results: `name` and `notes` of each."""
    for result in results:
        for text in result.get("notes", ()):
            note(f"note: {result['name']}: {text}")


def as_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def line(text: str) -> None:
    """One line on stdout."""
    click.echo(text)


def piece(text: str) -> None:
    """A piece of streamed text on stdout, flushed at once."""
    click.echo(text, nl=False)
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; text is aligned left, numbers right."""
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        words = all(isinstance(row[index], str) and not row[index][:1].isdigit() for row in rows)
        shown.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell(value)) for value in row))
    width = None if sys.stdout.isatty() else 160  # a log has no width: never fold numbers there
    Console(width=width, highlight=False).print(shown)


def hardest(title: str, rows: Mapping[str, Mapping[str, Any]], by: str, meaning: str, most: int = 12) -> None:
    """A table of the `most` entries with the largest value of `by`; --json has all. meaning: what `by` is."""
    order = sorted(rows, key=lambda name: -float(rows[name].get(by) or 0.0))[:most]
    columns = sorted({key for name in order for key, value in rows[name].items() if isinstance(value, (int, float))})
    shown = f"{title}, by {by} ({meaning})" + (f", the first {most} of {len(rows)}" if len(rows) > most else "")
    table(shown, ("", *columns), [(name, *(rows[name].get(key) for key in columns)) for name in order])


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 1e3 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple)):
        return " .. ".join(cell(item) for item in value)
    return str(value)


def facts(title: str, values: Mapping[str, Any]) -> None:
    """A title and one name and value per line, on stdout."""
    width = max(map(len, values), default=0)
    line(title)
    for name, value in values.items():
        line(f"  {name:<{width}}  {cell(value)}")


def size(count: int | float) -> str:
    """Bytes in readable units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def peaks_record(peaks: Sequence[int]) -> dict[str, Any]:
    """What --json says of ranks: the peak memory of each in bytes; empty for a single process."""
    return {"ranks": [{"rank": rank, "peak_bytes": peak} for rank, peak in enumerate(peaks)]} if len(peaks) > 1 else {}


def peaks(peaks: Sequence[int]) -> None:
    """The peak memory of every rank; nothing for a single process."""
    if len(peaks) > 1:
        table("ranks", ("rank", "peak memory"), [(rank, size(peak)) for rank, peak in enumerate(peaks)])
