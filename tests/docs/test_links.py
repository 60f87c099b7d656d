"""Links of the docs lead somewhere, and the files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A path of the tree: a top folder, then names. Patterns with <, {, * stand for many files and are left out.
TREE_PATH = re.compile(r"\b((?:dfrot|kernels|cli|recipes|tests|docs|examples)/[\w./-]*[\w/])")
README_LINES = 150


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading: lower case, punctuation dropped, spaces to dashes."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def test_every_relative_link_resolves(pages: list[Any]) -> None:
    broken = []
    for page in pages:
        for link in LINK.findall(page.prose):
            if re.match(r"https?://|mailto:", link):
                continue
            target, _, fragment = link.partition("#")
            path = (page.path.parent / target).resolve() if target else page.path
            if not path.exists() or (fragment and fragment not in anchors(path)):
                broken.append(f"{page.name}: {link}")
    assert not broken


def test_paths_of_the_tree_exist(pages: list[Any]) -> None:
    missing = []
    for page in pages:
        if page.name == "CHANGELOG.md":  # names what is no longer there
            continue
        written = set(re.findall(r"^\d+\. Write `([\w./]+)`:$", page.prose, re.MULTILINE))  # walk-throughs make these
        for text in re.findall(r"`([^`\n]+)`", page.prose):
            if re.search(r"[<{*]|\.\.\.", text):
                continue
            named = set(TREE_PATH.findall(text)) - written
            missing += [f"{page.name}: {path}" for path in sorted(named) if not (ROOT / path).exists()]
    assert not missing


def test_every_page_is_in_the_index(pages: list[Any]) -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    names = [page.path.relative_to(ROOT / "docs").as_posix() for page in pages if ROOT / "docs" in page.path.parents]
    assert not [name for name in names if name != "README.md" and f"({name})" not in index]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES
