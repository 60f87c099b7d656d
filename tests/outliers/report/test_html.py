"""report.html stands alone: nothing to fetch, nothing to run, every figure there, in a browser too."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfrot.outliers.report.figures import short_name
from dfrot.outliers.report.png import encode_png
from dfrot.stages.outliers.compare import compare
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.settings import OutlierSettings

MakeCheckpoint = Callable[..., Path]


class Page(HTMLParser):
    """What a page refers to, and the ids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "data", "action", "poster"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture
def folder(small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace) -> Path:
    out = tmp_path / "report"
    settings = OutlierSettings(dataset=str(text_file), seqlen=64, rounds=2, perplexity=False)
    outliers(small_llama(change=massive_weight.change), out, settings)
    return out


def test_the_page_refers_to_nothing_outside_itself(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not page.tags & {"script", "link-stylesheet", "iframe", "object", "embed"}
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_figure_is_in_the_page_and_beside_it(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    files = sorted((folder / "figures").glob("*.svg"))
    assert {f"figure-{file.stem}" for file in files} == {name for name in page.ids if name.startswith("figure-")}
    assert len(files) >= 12
    for file in files:
        assert ET.parse(file).getroot().tag.endswith("svg")  # well-formed XML, so that any viewer opens it
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (folder / "figures").glob("*.png"))


def test_a_model_of_any_size_makes_a_small_page(folder: Path) -> None:
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_the_report_is_the_same_when_made_again(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    settings = OutlierSettings(dataset=str(text_file), seqlen=64, rounds=2, perplexity=False)
    model = small_llama(change=massive_weight.change)
    for name in ("first", "second"):
        outliers(model, tmp_path / name, settings)
    for file in ("report.json", "report.html"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_png_pixels_come_back() -> None:
    import zlib

    data = encode_png([bytes([0, 128, 255]), bytes([7, 8, 9])], zoom=2)
    start = data.index(b"IDAT") + 4
    scan = zlib.decompress(data[start : data.index(b"IEND") - 8])
    assert scan == b"".join(
        b"\0" + bytes(v for v in row for _ in "ab") for row in ([0, 128, 255],) * 2 + ([7, 8, 9],) * 2
    )


def test_two_checkpoints_side_by_side(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    settings = OutlierSettings(dataset=str(text_file), seqlen=64, rounds=2)
    out = tmp_path / "both"
    report = compare(small_llama("a", change=massive_weight.change), small_llama("b"), out, settings)
    rows = {row[0]: row[1:] for row in report["rows"]}
    assert rows["massive activation channels"] == [1, 0]
    assert rows["massive activations created by"] == [[short_name("model.layers.1.mlp.down_proj")], []]
    page = Page((out / "report.html").read_text())
    assert all(link.startswith("data:") for link in page.links)
    assert {"figure-stream", "figure-a-relief", "figure-b-relief"} <= set(page.ids)
    assert json.loads((out / "report.json").read_text())["rows"] == report["rows"]


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint(folder: Path, tmp_path: Path, width: int) -> None:
    """No console message, no request beyond the file, no sideways scrolling, every figure with an area."""
    page = (folder / "report.html").read_text()
    probe = """<script>addEventListener('load',()=>{const f=[...document.querySelectorAll('figure svg')];
    document.body.dataset.probe=JSON.stringify({figures:f.length,
    empty:f.filter(s=>s.getBoundingClientRect().height<50).length,
    wide:document.documentElement.scrollWidth-document.documentElement.clientWidth,
    requests:performance.getEntriesByType('resource').filter(e=>!e.name.startsWith('data:')).length})})</script>"""
    probed = tmp_path / "probed.html"
    frame = f"<iframe style='width:{width}px;height:4000px;border:0' src='inner.html'></iframe>"
    (tmp_path / "inner.html").write_text(page.replace("</body>", probe + "</body>"))
    lift = "<script>addEventListener('load',()=>{const b=document.querySelector('iframe').contentDocument.body;"
    probed.write_text(
        f"<!doctype html><body>{frame}{lift}document.body.dataset.probe=b.dataset.probe}})</script></body>"
    )
    assert CHROMIUM is not None
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
    ]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    ran = subprocess.run(
        [CHROMIUM, *arguments, profile, "--window-size=1400,4100", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    assert "CONSOLE" not in ran.stderr
    raw = ran.stdout.split('data-probe="')[1].split('"')[0].replace("&quot;", '"')
    probe_result: dict[str, Any] = json.loads(raw)
    assert probe_result["figures"] == len(list((folder / "figures").glob("*.svg")))
    assert probe_result["empty"] == 0
    assert probe_result["wide"] <= 0
    assert probe_result["requests"] == 0
