"""Names of models: folders, aliases, the hub cache, and what is said when none of it works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dfrot import hub as models
from dfrot.errors import InputError, ResourceError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no package that carries a model."""
    monkeypatch.setattr("dfrot.hub.PACKAGED", {})
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def fill(cache: Path, hub_id: str, files: dict[str, str]) -> Path:
    """What the hub client leaves after a download."""
    root = cache / ("models--" + hub_id.replace("/", "--"))
    snapshot = root / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("c0ffee")
    for name, content in files.items():
        (snapshot / name).write_text(content)
    return snapshot


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert models.resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="the model's name is empty"):
        models.resolve_model("")


def test_the_reference_model_ships() -> None:
    folder = models.resolve_model("reference")
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").stat().st_size < 18e6


def test_a_cached_model_needs_no_network(cache: Path) -> None:
    snapshot = fill(cache, "Qwen/Qwen3-8B", {"config.json": "{}", "model.safetensors": ""})
    assert models.resolve_model("qwen3-8b") == models.find_local("qwen3-8b") == snapshot
    assert models.resolve_model("Qwen/Qwen3-8B") == snapshot
    assert [row.alias for row in models.known_aliases() if row.folder] == ["qwen3-8b"]


def test_a_half_cached_model_is_not_whole(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    files = {"config.json": "{}", "model.safetensors.index.json": index, "model-1.safetensors": ""}
    fill(cache, "Qwen/Qwen3-8B", files)
    assert models.cached_folder("Qwen/Qwen3-8B") is None


def test_offline_says_where_files_would_help(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError) as caught:
        models.resolve_model("llama3-8b")
    message = str(caught.value)
    assert "meta-llama/Meta-Llama-3-8B" in message
    assert str(cache) in message
    assert "HF_TOKEN" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError"])
def test_restricted_models_ask_for_a_token(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from huggingface_hub import errors

    class Refused(getattr(errors, kind)):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    def refuse(*args: object, **kwargs: object) -> None:
        raise Refused

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ResourceError, match="HF_TOKEN"):
        models.resolve_model("llama2-7b")


def test_downloads_ask_for_weights_and_tokenizers_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fnmatch import fnmatch

    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    models.resolve_model("some/model")

    def fetched(name: str) -> bool:
        wanted = any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        return wanted and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])

    assert all(fetched(name) for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.model"))
    assert all(fetched(name) for name in ("model.safetensors.index.json", "merges.txt", "chat_template.jinja"))
    unwanted = ("pytorch_model.bin", "modeling_x.py", "original/params.json", "consolidated.safetensors", "x.gguf")
    assert not any(fetched(name) for name in unwanted)


@pytest.mark.parametrize(
    "name", ["qwen3-8bb", "a/b--c", "a/b..c", "a/b.git", "a/b-", "a/ß", "no such thing", "./missing", "a/b/c", "../x"]
)
def test_nonsense_is_refused_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # whose neighbourhood is known
    monkeypatch.setattr("dfrot.hub.download", lambda name, *_: pytest.fail(f"asked the hub for {name}"))
    with pytest.raises(InputError, match="no such folder"):
        models.resolve_model(name)


HUB = "https://huggingface.co/"


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("org/name@v1.0", "org/name", "v1.0"),
        ("qwen3-8b@refs/pr/3", "Qwen/Qwen3-8B", "refs/pr/3"),
        ("org/name@0123abc", "org/name", "0123abc"),
        (HUB + "org/name", "org/name", None),
        (HUB + "org/name/", "org/name", None),
        (HUB + "org/name/tree/main", "org/name", "main"),
        (HUB + "org/name/tree/refs%2Fpr%2F1?x=1#y", "org/name", "refs/pr/1"),
        (HUB + "org/name/commit/0123abc", "org/name", "0123abc"),
        ("hf.co/org/name", "org/name", None),
        ("huggingface.co/org/name/tree/v1", "org/name", "v1"),
    ],
)
def test_revisions_and_pages(name: str, hub_id: str, revision: str | None) -> None:
    assert models.parse_hub_name(name) == models.HubModel(hub_id, revision)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (HUB + "datasets/org/name", "not the page of a model"),
        (HUB + "org", "not the page of a model"),
        (HUB + "org/name/blob/main/model.safetensors", "not the page of a model"),
        (HUB + "org/name/tree/main/folder", "not a branch, tag or commit"),
        (HUB + "../../etc", "not the page of a model"),
        ("https://example.com/org/name", "only URLs of huggingface.co"),
        ("org/name@", "not a branch, tag or commit"),
        ("org/name@../x", "not a branch, tag or commit"),
        ("org/name@refs/../../x", "not a branch, tag or commit"),
        ("org/na me@v1", "no such folder"),
    ],
)
def test_what_is_no_name_of_a_model(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        models.resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_revision_is_looked_up_in_the_cache(cache: Path) -> None:
    snapshot = fill(cache, "org/name", {"config.json": "{}", "model.safetensors": ""})
    (snapshot.parents[1] / "refs" / "v1").write_text("c0ffee")
    assert models.resolve_model("org/name@v1") == snapshot
    assert models.resolve_model("org/name@c0ffee") == snapshot
    assert models.resolve_model(HUB + "org/name/tree/v1") == snapshot
    with pytest.raises(ResourceError, match="org/name@v2"):
        models.resolve_model("org/name@v2")


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean qwen3-8b"):
        models.resolve_model("qwen3-8bb")


def test_models_lists_all(dfq: Any, cache: Path) -> None:
    rows = dfq("models", "--json").json
    assert {row["alias"] for row in rows} == {*models.SHIPPED, *models.ALIASES}
    assert "llama3-8b" in dfq("models").out


def test_default_dataset_follows_the_run(tmp_path: Path) -> None:
    assert models.default_dataset("reference", tmp_path) == "stdlib"
    assert models.default_dataset("llama3-8b", tmp_path) == "wikitext2"
    (tmp_path / "stage.json").write_text(json.dumps({"request": {"settings": {"dataset": "stdlib"}}}))
    assert models.default_dataset(str(tmp_path), tmp_path) == "stdlib"


def test_checkpoints_in_a_folder_put_the_baseline_first(tmp_path: Path) -> None:
    entry = {"quant_method": "dfq", "format_version": 1, "scheme": {"w_bits": 4}}
    for name, config in (("a", {"quantization_config": entry}), ("z", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert models.checkpoints_in(tmp_path) == [tmp_path / "z", tmp_path / "a"]
    assert models.checkpoints_in(tmp_path / "a") == [tmp_path / "a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="`models`"):
        models.checkpoints_in(tmp_path / "empty")


def test_records_name_the_commit(dfq: Any, make: Any, cache: Path, tmp_path: Path) -> None:
    """Of the checkpoint in the hub's cache, through the stages that follow."""
    model = make("model")
    snapshot = cache / "models--org--some-name" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(model, snapshot)
    (cache / "models--org--some-name" / "refs").mkdir()
    (cache / "models--org--some-name" / "refs" / "main").write_text(snapshot.name)
    (tmp_path / "text.txt").write_text("what is written here matters little. " * 40)
    data = ("--dataset", tmp_path / "text.txt", "--samples", 2, "--seqlen", 32, "--no-statistics")
    assert dfq("rotate", "--model", "org/some-name", "--method", "none", "--out", tmp_path / "rotated").code == 0
    assert dfq("calibrate", "--model", tmp_path / "rotated", *data, "--out", tmp_path / "stats").code == 0
    for folder in ("rotated", "stats"):
        record = json.loads((tmp_path / folder / "stage.json").read_text())
        assert record["hub"] == {"hub_id": "org/some-name", "commit": "0123456789" * 4}
    assert dfq("rotate", "--model", model, "--method", "none", "--out", tmp_path / "other").code == 0
    assert "hub" not in json.loads((tmp_path / "other" / "stage.json").read_text())
