"""Images through the commands on a tiny packed VLM: every route is lossless, every refusal is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.draft.training.stored_features import StoredFeatures
from dfrot.files import read_json
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.load_target import load_target
from dfrot.vision.prompts import LlavaPromptReader, load_questions

Image = pytest.importorskip("PIL.Image")
FEW = ("--samples", "6", "--held-out", "2", "--seqlen", "48")
TRAIN = ("--batch", "2", "--epochs", "1", "--evaluations", "1")


@pytest.fixture(scope="module")
def draft(packed: Path, dfq: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps on the target's answers to drawn images."""
    out = tmp_path_factory.mktemp("draft") / "draft"
    result = dfq("draft", "train", "--model", packed, "--dataset", "shapes", "--regenerate", "--out", out, *FEW, *TRAIN)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl of 60 conversations about images beside it."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(60):
        Image.new("RGB", (20, 12), (4 * number, 0, 99)).save(folder / f"{number}.png")
        question = {"role": "user", "content": f"<image>Number {number}?"}
        answer = {"role": "assistant", "content": f"It is {number} of many."}
        lines.append(json.dumps({"messages": [question, answer], "images": [f"{number}.png"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("source", ["shapes", "rows"])
def test_eval_is_lossless(source: str, packed: Path, draft: Path, rows: Path, dfq: Any, tmp_path: Path) -> None:
    data = source if source == "shapes" else rows
    shapes = ("--chain", "3", "--tree", "3,2,6", "--count", "4", "--max-new-tokens", "12")
    options = ("--dataset", data, "--require-lossless", "--out", tmp_path / "e.json")
    result = dfq("draft", "eval", "--model", packed, "--draft", draft, *shapes, *options)
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "e.json")
    assert {numbers["identical"] for numbers in report["shapes"].values()} == {"4/4"}
    assert all(numbers["rounds"] > 4 for numbers in report["shapes"].values())


def test_the_image_decides_the_answer(packed: Path, draft: Path, dfq: Any, tmp_path: Path) -> None:
    tokens_of: dict[str, list[Any]] = {}
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
        prompt = ("--prompt", "What is it?", "--image", tmp_path / f"{name}.png", "--max-new-tokens", "10", "--json")
        routes = (
            ("generate", "--model", packed),
            ("generate", "--model", packed, "--draft", draft, "--chain", "2"),
            ("draft", "generate", "--model", packed),
            ("draft", "generate", "--model", packed, "--draft", draft, "--tree", "2,2,4"),
        )
        tokens_of[name] = [json.loads(dfq(*route, *prompt).stdout)["tokens"] for route in routes]
        assert all(tokens == tokens_of[name][0] for tokens in tokens_of[name]), "the routes must agree"
        assert len(tokens_of[name][0]) > 4
    assert tokens_of["red"] != tokens_of["blue"]


@pytest.mark.parametrize("source", ["shapes", "rows"])
def test_stored_features_equal_computed_ones(
    source: str, packed: Path, rows: Path, dfq: Any, tmp_path: Path, draft: Path
) -> None:
    data = source if source == "shapes" else str(rows)
    result = dfq("draft", "extract", "--model", packed, "--dataset", data, "--out", tmp_path / "f", *FEW)
    assert result.exit_code == 0, result.output
    from dfrot.stages.draft.samples import live_source
    from dfrot.stages.draft.settings import DataSettings

    settings = DataSettings(dataset=data, samples=6, held_out=2, seqlen=48)
    live = live_source(packed, load_target(packed), settings, "sample", lambda *_: None)
    stored = StoredFeatures(tmp_path / "f")
    for side, index in (("train", torch.tensor([3, 1])), ("held_out", torch.tensor([0, 1]))):
        (rows_a, a), (rows_b, b) = live.batch(side, index), stored.batch(side, index)
        assert rows_a.digest() == rows_b.digest()
        for name in ("last", "mid", "embeddings", "kept"):
            # padding behind a sample is whatever its pass gave
            for n, length in enumerate(rows_a.lengths.tolist()):
                left, right = getattr(a, name)[n], getattr(b, name)[n]
                assert torch.equal(left, right) if name == "kept" else torch.equal(left[:length], right[:length]), name
    result = dfq("draft", "train", "--model", packed, "--features", tmp_path / "f", "--out", tmp_path / "d", *TRAIN)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "d" / "draft.safetensors").stat().st_size == (draft / "draft.safetensors").stat().st_size


def test_answers_count_and_questions_do_not(packed: Path, rows: Path) -> None:
    from dfrot.stages.draft.samples import live_source
    from dfrot.stages.draft.settings import DataSettings

    reader = LlavaPromptReader.open(packed)
    settings = DataSettings(dataset=str(rows), samples=4, held_out=1, seqlen=48)
    source = live_source(packed, load_target(packed), settings, "none", lambda *_: None)
    for sample in source.samples["train"]:
        answer = reader.tokenizer.decode(sample.tokens[sample.prompt :])
        assert answer.startswith("It is ")
        assert answer.endswith("many.<|eos|>")
        assert sample.tokens[: sample.prompt].count(reader.image_token) == 4
        assert sample.counts().tolist() == [
            sample.prompt <= n < len(sample.tokens) - 1 for n in range(len(sample.tokens))
        ]


def test_rotating_and_packing_keep_the_vision_part(original: Path, rotated: Path, packed: Path) -> None:
    gate = read_json(rotated / "stage.json")["gate"]
    assert gate["image_tokens"] == 8
    assert gate["parts"]["projector"]["error"] < 1e-3
    marks = {read_json(folder / "vision.json")["language_model"] for folder in (original, rotated, packed)}
    assert len(marks) == 3
    prompt = load_questions("shapes", LlavaPromptReader.open(original), 1)[0]
    assert prompt.images is not None
    logits = []
    for folder in (original, rotated):
        model = load_target(folder).model
        logits.append(model(input_ids=torch.tensor([prompt.ids]), **prompt.images.tensors).logits)
    assert torch.allclose(*logits, atol=1e-3 * float(logits[0].abs().max()))


def test_refusals(packed: Path, draft: Path, rows: Path, dfq: Any, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines()
    broken = rows.parent / "broken.jsonl"
    broken.write_text("\n".join([lines[0], "", lines[1].replace("<image>", ""), *lines[2:]]))
    text = rows.parent / "mixed.jsonl"
    text.write_text("\n".join([lines[0], json.dumps({"messages": json.loads(lines[1])["messages"]})]))
    named = rows.parent / "named.jsonl"
    named.write_text(lines[0].replace("Number", "<|image|>"))
    (tmp_path / "cut.png").write_bytes((rows.parent / "1.png").read_bytes()[:40])
    train = ("draft", "train", "--out", tmp_path / "no", *FEW, *TRAIN)
    measured = ("draft", "eval", "--model", packed, "--draft", draft, "--count", "2")
    cases = [
        ((*train, "--model", packed, "--dataset", broken), "line 3: 0 places for images"),
        ((*train, "--model", "reference", "--dataset", rows), "takes no images"),
        ((*train, "--model", "reference", "--dataset", "shapes"), "takes no images"),
        ((*train[: -len(TRAIN)], "--seqlen", "12", "--model", packed, "--dataset", "shapes"), "--seqlen 12"),
        ((*measured, "--dataset", text), "line 2"),
        ((*measured, "--dataset", named), "8 image tokens in the prompt, 4 for 1 images"),
        (("generate", "--model", "reference", "--prompt", "x", "--image", rows.parent / "1.png"), "takes no images"),
        (("generate", "--model", packed, "--prompt", "x", "--image", tmp_path / "cut.png"), "not a whole"),
        (("generate", "--model", packed, "--prompt", "x", "--image", tmp_path / "absent.png"), "absent.png"),
        (("generate", "--model", packed, "--prompt", "say <|image|>"), "1 image tokens in the prompt, 0 for 0 images"),
        (("export", "--model", packed, "--to", "gguf", "--out", tmp_path / "no"), "vision part"),
    ]
    for arguments, message in cases:
        result = dfq(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr, arguments
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tower": {"image_size": 16, "patch_size": 0}},
        {"tower": {"image_size": 1 << 20, "patch_size": 8}},
        {"tower": {"image_size": 16, "patch_size": 8, "num_hidden_layers": 10**9}},
        {"tower": {"image_size": 16, "patch_size": 8, "num_hidden_layers": "many"}},
        {"tower": {"image_size": 16, "patch_size": 8, "hidden_size": 1 << 40}},
        {"tower": {"image_size": 16, "patch_size": 8, "hidden_size": 60000, "intermediate_size": 60000}},
        {"tower": {"image_size": 16, "patch_size": 8, "hidden_size": 30, "num_attention_heads": 7}},
        {"tower": {"image_size": 16, "patch_size": 8, "hidden_act": "none such"}},
        {"tower": 3},
        {"image_token": -1},
        {"image_token": 5000},
        {"image_token": True},
        {"language_model": ["x"]},
        {"more": 1},
    ],
)
def test_hostile_descriptions(change: dict[str, Any], original: Path, dfq: Any, tmp_path: Path) -> None:
    for file in original.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "vision.json").unlink()
    (tmp_path / "vision.json").write_text(json.dumps({**read_json(original / "vision.json"), **change}))
    result = dfq("generate", "--model", tmp_path, "--prompt", "x")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 400


def test_inspect_shows_images(packed: Path, dfq: Any) -> None:
    facts = json.loads(dfq("inspect", packed, "--json").stdout)
    assert facts["images"] == "16 x 16 pixels, 4 tokens each"
    assert all("vision part" in reason for reason in facts["exports_to"].values())
    assert "images" not in json.loads(dfq("inspect", "reference", "--json").stdout)


def test_a_vision_part_of_another_model_is_refused(packed: Path, rotated: Path, dfq: Any, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "mixed"
    shutil.copytree(packed, folder)
    shutil.copyfile(rotated / "vision.json", folder / "vision.json")
    result = dfq("generate", "--model", folder, "--prompt", "x")
    assert result.exit_code == 2
    assert "another language model" in result.stderr


def test_requests_take_turns(packed: Path) -> None:
    """Steps of two texts about different images, one after the other, and each as if it were alone."""
    engine = Engine(packed)
    pictures = [torch.full((16, 16, 3), value, dtype=torch.uint8) for value in (0, 255)]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    requests = []
    for picture in pictures:
        ids, images = engine.encode_multimodal(messages, [picture])
        requests.append(TextRequest(ids, max_new_tokens=8, images=images, ignore_eos=True))
    alone = [list(job) and job.out.tokens for job in map(engine.start, requests)]
    together = [engine.start(request) for request in requests]
    for _ in zip(*together):
        pass
    assert [job.out.tokens[:7] for job in together] == [tokens[:7] for tokens in alone]
    assert alone[0] != alone[1]
