"""A table of results as Markdown, and as one HTML file without scripts or external resources."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from dfrot.stages.report.table import Column, Table

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}"
    "table{border-collapse:collapse}th,td{padding:.35rem .8rem;border-bottom:1px solid #d5dae0;text-align:right}"
    "th:first-child,td:first-child{text-align:left}th{background:#f3f5f7}p{color:#57606a}"
    "@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8ea}th{background:#22272c}"
    "th,td{border-color:#39404a}p{color:#9aa4af}}"
)


def format_cell(column: Column, value: Any) -> str:
    """A value as text, in the unit of its column."""
    if value is None:
        return ""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if column.unit == "%":
        return f"{value:.2%}"
    if column.unit == "B":
        return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.2f} MB"
    if column.unit == "/s":
        return f"{value:,.1f}/s"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4f}"


def text_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """The headings, and the rows, as text."""
    columns = table.ordered()
    rows = [[name, *(format_cell(column, values.get(column.key)) for column in columns)] for name, values in table.rows]
    return ["checkpoint", *(column.title for column in columns)], rows


def markdown(table: Table) -> str:
    """The table as Markdown, with the files that were read."""
    headings, rows = text_rows(table)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    lines = [[text.replace("|", "\\|") for text in row] for row in (headings, rule, *rows)]
    files = "\n".join(f"- `{file}`" for file in table.files)
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + f"\n\nRead from:\n{files}\n"


def html_page(table: Table) -> str:
    """The table as one HTML page, with the files that were read."""
    headings, rows = text_rows(table)
    header = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>\n" for row in rows)
    files = ", ".join(html.escape(file) for file in table.files)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>dfq report</title><style>{_STYLE}</style>\n'
        f"<h1>dfq report</h1>\n<table><thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table>\n"
        f"<p>Read from: {files}</p></html>\n"
    )


WRITERS: dict[str, Callable[[Table], str]] = {".md": markdown, ".html": html_page}
"""Suffix of the file -> table as text."""
