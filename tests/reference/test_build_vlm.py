"""The reference VLM: what ships, how it is built, and that it sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfrot import hub as models
from dfrot import reference
from dfrot.data import shapes
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, ResourceError
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.reference import build_vlm
from dfrot.vision.conversations import drawn_conversation, question
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.prompts import LlavaPromptReader

IMAGE = 4094


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vlm") / "reference-vlm"
    out.mkdir()
    build_vlm.write_model(out)
    return out


def test_what_ships_is_small_and_described() -> None:
    files = {path.name: path.stat().st_size for path in build_vlm.path().iterdir()}
    assert {*build_vlm.SHIPPED, build_vlm.DELTA, "training.json"} == set(files)
    assert sum(files.values()) <= 10_000_000
    card = (build_vlm.path() / "MODEL_CARD.md").read_text()
    training = json.loads((build_vlm.path() / "training.json").read_text())
    assert f"{training['answers_right']:.1%}" in card
    assert f"{training['steps']} steps" in card
    for name in (*shapes.SHAPES, *shapes.WORDS, *shapes.COLOURS):
        assert name in card


def test_only_the_linears_of_the_blocks_differ(folder: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (reference.path(), folder))
    assert set(before) == set(after)
    for name, weight in before.items():
        same = torch.equal(weight, after[name])
        assert same == (weight.dim() == 1 or "embed" in name or "lm_head" in name), name
        if not same:
            change = (after[name].double() - weight.double()).norm() / weight.double().norm()
            assert change < 2, name


def test_the_image_token_is_no_text(folder: Path) -> None:
    tokenizer, plain_one = load_tokenizer(folder), load_tokenizer(reference.path())
    assert tokenizer(build_vlm.IMAGE)["input_ids"][-1] == IMAGE
    assert tokenizer.decode([5, IMAGE], skip_special_tokens=True) == tokenizer.decode([5])
    text = "def readable(self):\n    return 'readable unreadable readable_'\n\f"
    ids = tokenizer(text)["input_ids"]
    assert IMAGE not in ids
    assert IMAGE in plain_one(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    other = text.replace("readable", "legible")
    assert tokenizer(other)["input_ids"] == plain_one(other)["input_ids"]
    with pytest.raises(InputError, match="not the last merge"):
        build_vlm.with_image_token(json.loads((reference.path() / "tokenizer.json").read_text()), 300)


def test_it_says_what_is_in_held_out_images(folder: Path) -> None:
    target, sighted = load_target(folder), LlavaPromptReader.open(folder)
    right, blind, count = 0, 0, 24
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + count):
        messages, own, where = drawn_conversation(seed)
        for pictures in (own, drawn_conversation(seed + 1)[1]):
            prompt, tensors = sighted.encode(question(messages), pictures, where)
            said = plain(
                target, prompt, StopCriteria(48, end_token_ids(target)), Sampling(), images=ImageInputs(tensors)
            ).tokens
            same = sighted.tokenizer.decode(said, skip_special_tokens=True) == messages[1]["content"]
            right, blind = right + (same and pictures is own), blind + (same and pictures is not own)
    claimed = json.loads((build_vlm.path() / "training.json").read_text())["answers_right"]
    assert right / count > claimed - 0.2
    assert blind <= 2, "it must look at the image"


def test_the_name_leads_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    made = models.resolve_model("reference-vlm")
    assert made == models.reference_vlm_folder()
    assert made.name == "reference-vlm"
    times = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert models.resolve_model("reference-vlm") == made
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == times
    assert [path.name for path in made.parent.iterdir()] == ["reference-vlm"]
    assert models.default_dataset("reference-vlm", made) == "stdlib"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="set HF_HOME") as caught:
        models.resolve_model("reference-vlm")
    assert "\n" not in str(caught.value)


def test_two_makers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes first: its folder stays, ours goes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    write = build_vlm.write_model

    def slow(folder: Path) -> None:
        write(folder)
        models.reference_vlm_folder().mkdir(parents=True)
        (models.reference_vlm_folder() / "config.json").write_text("theirs")

    monkeypatch.setattr(build_vlm, "write_model", slow)
    made: Any = models.resolve_model("reference-vlm")
    assert (made / "config.json").read_text() == "theirs"
    assert [path.name for path in made.parent.iterdir()] == ["reference-vlm"]
