"""The pages of README and docs, taken apart into prose, links and code blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(```+)\s*([\w-]*)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced code block. language: the word behind the fence, "" for none. line: of its first line, from 1."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A Markdown file. prose: its text with every fenced block blanked, so that line numbers stay."""

    path: Path
    text: str
    prose: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @classmethod
    def read(cls, path: Path) -> Page:
        text = path.read_text(encoding="utf-8")
        prose: list[str] = []
        blocks: list[Block] = []
        fence, language, start, inside = "", "", 0, []
        for number, line in enumerate(text.splitlines(), 1):
            if not fence and (match := FENCE.match(line)):
                fence, language, start, inside = match[1], match[2], number + 1, []
            elif fence and line.strip() == fence:
                blocks.append(Block(language, "\n".join(inside) + "\n", start))
                fence = ""
            elif fence:
                inside.append(line)
            prose.append("" if fence or FENCE.match(line) else line)
        assert not fence, f"{path}: a code block is not closed"
        return cls(path, text, "\n".join(prose), tuple(blocks))


def spans(page: Page) -> list[str]:
    """Inline code of a page's prose."""
    return re.findall(r"`([^`\n]+)`", page.prose)


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    """README, CONTRIBUTING, CHANGELOG and every page of docs."""
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [Page.read(path) for path in [*files, *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
