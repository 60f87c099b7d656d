"""Which packed folder belongs to which 16-bit folder, and what the table says of bits and bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.errors import InputError
from dfrot.race.driver_process import ContenderError
from dfrot.race.field import by_source, dfq_contenders, exported_contenders, peer_contenders
from dfrot.race.prepare import Workshop


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sizes, each with a packed folder; `narrow` stands in for 16-bit ones, which have the same sizes."""
    root = tmp_path_factory.mktemp("models")
    wide = {**preset("tiny"), "hidden_size": 256}
    made = {}
    for name, config, scheme in (
        ("tiny", preset("tiny"), "w8a16kv16"),
        ("tiny-4", preset("tiny"), "w4a8kv4"),
        ("wide", wide, "w8a16kv16"),
        ("wide-4", wide, "w4a16-g32"),
    ):
        made[name] = random_checkpoint(root / name, config, scheme)
    return made


def test_packed_folders_find_their_source(folders: dict[str, Path]) -> None:
    found = by_source([folders["tiny"], folders["wide"]], [folders["wide-4"], folders["tiny-4"]])
    assert found == {folders["tiny"]: [folders["tiny-4"]], folders["wide"]: [folders["wide-4"]]}


def test_a_packed_folder_without_a_source_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of `models`"):
        by_source([folders["tiny"]], [folders["wide-4"]])
    twin = shutil.copytree(folders["tiny"], tmp_path / "twin")
    with pytest.raises(InputError, match="several of `models`"):
        by_source([folders["tiny"], twin], [folders["tiny-4"]])
    (twin / "tokenizer.json").write_text("{}")  # another tokenizer: no twin
    assert by_source([folders["tiny"], twin], [folders["tiny-4"]])[twin] == []
    with pytest.raises(InputError, match="no checkpoint"):
        by_source([], [])


def test_bits_and_bytes_of_our_own(folders: dict[str, Path]) -> None:
    _, packed = dfq_contenders(folders["tiny"], [folders["tiny-4"]], [0, 1])
    assert packed.name == "dfq w4a8kv4"
    assert packed.command[-1] == "0,1"
    assert packed.bits == {"weights": 4, "activations": 8, "kv": 4, "head": 4, "embedding": 16}
    assert packed.bytes_on_disk == sum(file.stat().st_size for file in packed.path.glob("*.safetensors"))
    _, grouped = dfq_contenders(folders["wide"], [folders["wide-4"]], [0])
    assert grouped.bits["weights"] == 4.5
    names = [item.name for item in dfq_contenders(folders["tiny"], [folders["tiny-4"]] * 2, [0])]
    assert names[1:] == ["dfq w4a8kv4 (tiny-4)"] * 2


def test_engines_that_are_not_set_up_are_absent_with_the_reason(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "source", tmp_path / "files", tmp_path / "engines", 1)
    contenders, absent = peer_contenders(shop, ["torch", "llama.cpp"], [0])
    assert [contender.name for contender in contenders] == ["torch bf16"]
    assert list(absent) == ["llama.cpp Q4_0", "llama.cpp Q4_K_M"]
    assert all("run `make peers`" in reason for reason in absent.values())
    with pytest.raises(ContenderError, match="not set up"):
        shop.python("openvino")


def test_vllm_gets_exports_of_what_it_serves_as_declared(folders: dict[str, Path], tmp_path: Path) -> None:
    shop = Workshop(folders["wide"], tmp_path / "files", tmp_path / "engines", 1)
    assert exported_contenders(shop, [folders["tiny-4"]], [0]) == ([], {})  # activations of 8 bits
    assert "not set up" in exported_contenders(shop, [folders["wide-4"]], [0])[1]["vllm w4a16-g32"]
    python = tmp_path / "engines" / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (contender,), absent = exported_contenders(shop, [folders["wide-4"]], [0])
    # random weights of the test quantize the head too, in groups of the same width: a linear like others
    assert not absent
    assert "pack-quantized" in (contender.path / "config.json").read_text()
    assert str(python) in contender.command
