"""A VLM in the layout of the hub with its makers' processor: packed, with a lossless draft."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dfrot.data.jsonl import read_json_lines
from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.training.multimodal_data import training_sample
from dfrot.files import read_json
from dfrot.inputs.fingerprint import PROCESSOR_FILES
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision.conversations import conversation_row, drawn_conversation, question
from dfrot.vision.prompts import prompt_reader

Image = pytest.importorskip("PIL.Image")
IMAGE = 4094


def llava(original: Path, folder: Path) -> None:
    """A random LLaVA with its processor: four image tokens an image, the shipped tokenizer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    text = {key: value for key, value in read_json(original / "config.json").items() if key != "architectures"}
    tower = {"model_type": "clip_vision_model", "projection_dim": 32, **read_json(original / "vision.json")["tower"]}
    config = LlavaConfig(
        text_config=text, vision_config=tower, image_token_id=IMAGE, vision_feature_layer=-1, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    save(LlavaForConditionalGeneration(config), folder)
    tokenizer = load_tokenizer(original)
    crop = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=crop, do_resize=True)
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(
        images, tokenizer, **options, image_token="<|image|>", chat_template=tokenizer.chat_template
    )
    processor.save_pretrained(folder)


def gemma3(original: Path, folder: Path) -> None:
    """A random Gemma 3 with its processor: windows shorter than a prompt, tokens of an image attend to each other."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<|image|>"}
    tokenizer = AutoTokenizer.from_pretrained(original, extra_special_tokens=tokens)
    small = read_json(original / "config.json")
    text = {key: small[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")}
    text |= {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "intermediate_size": 96, "sliding_window": 6}
    text |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "query_pre_attn_scalar": 24}
    text |= {"tie_word_embeddings": False, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}
    tower = {**read_json(original / "vision.json")["tower"], "patch_size": 4}
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    config = Gemma3Config(
        text_config=text, vision_config=tower, mm_tokens_per_image=4, tie_word_embeddings=False, **ids
    )
    torch.manual_seed(0)
    save(Gemma3ForConditionalGeneration(config), folder, 0.125)
    template = tokenizer.chat_template.replace("<|image|>", tokens["boi_token"])
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(folder)


def save(model: Any, folder: Path, embeddings: float = 1.0) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=embeddings if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=[llava, gemma3], ids=lambda make: make.__name__)
def hub(request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as its makers publish it, in W4A4KV4."""
    root = tmp_path_factory.mktemp("hub")
    request.param(original, root / "original")
    rotate(root / "original", root / "rotated", RotateSettings(method="hadamard", dataset=None, seqlen=32))
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn")
    quantize(root / "rotated", None, root / "packed", settings)
    return root / "packed"


def test_a_draft_is_trained_and_lossless(hub: Path, dfq: Any, tmp_path: Path) -> None:
    few = ("--samples", "6", "--held-out", "2", "--seqlen", "48", "--batch", "2", "--epochs", "1", "--evaluations", "1")
    train = ("draft", "train", "--model", hub, "--dataset", "shapes", "--regenerate", "--out", tmp_path / "draft", *few)
    result = dfq(*train)
    assert result.exit_code == 0, result.output
    options = ("--dataset", "shapes", "--count", "3", "--max-new-tokens", "12", "--out", tmp_path / "e.json")
    shapes = ("--chain", "3", "--tree", "3,2,6", "--require-lossless")
    result = dfq("draft", "eval", "--model", hub, "--draft", tmp_path / "draft", *options, *shapes)
    assert result.exit_code == 0, result.output
    assert {numbers["identical"] for numbers in read_json(tmp_path / "e.json")["shapes"].values()} == {"3/3"}
    answers = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        Image.new("RGB", (40, 30), colour).save(tmp_path / "a.png")
        prompt = ("--prompt", "What is it?", "--image", tmp_path / "a.png", "--max-new-tokens", "10", "--json")
        routes = (
            ("generate", "--model", hub),
            ("draft", "generate", "--model", hub, "--draft", tmp_path / "draft", "--chain", "2"),
        )
        answers.append([json.loads(dfq(*route, *prompt).stdout)["tokens"] for route in routes])
        assert answers[-1][0] == answers[-1][1]
    assert answers[0] != answers[1]


def test_samples_hold_prompt_and_answer(hub: Path) -> None:
    reader = prompt_reader(hub)
    messages, pictures, where = drawn_conversation(0)
    sample = training_sample(reader, (messages, pictures, where), 64)
    prompt, inputs = reader.encode(question(messages), pictures, where)
    assert sample.tokens[: sample.prompt] == prompt
    assert prompt.count(reader.image_token) == 4
    assert torch.equal(sample.inputs["pixel_values"], inputs["pixel_values"])
    assert reader.tokenizer.decode(sample.tokens[sample.prompt :]) == messages[1]["content"] + "<|eos|>"


def rows_of(folder: Path) -> Path:
    """A file of conversations with two images, one of them behind an answer, with one, and with none."""
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        Image.new("RGB", (20, 12), colour).save(folder / f"{name}.png")
    lines = []
    for number in range(48):
        turns = [f"Number {number}?", "It is so many.", "And this one?", f"It is {number} of them."]
        row: dict[str, Any] = {}
        if number % 3:
            turns[0] = f"<image>{turns[0]}"
            row["images"] = ["a.png"]
        if number % 3 == 2:
            turns[2] = f"<image>{turns[2]}"
            row["images"] = ["a.png", "b.png"]
        roles = ("user", "assistant") * 2
        row["messages"] = [{"role": role, "content": text} for role, text in zip(roles, turns)]
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def test_rows_without_images_and_images_behind_an_answer(hub: Path, dfq: Any, tmp_path: Path) -> None:
    rows, reader = rows_of(tmp_path), prompt_reader(hub)
    samples = [
        training_sample(reader, conversation_row(row, tmp_path, where), 96)
        for row, where in itertools.islice(read_json_lines(rows), 3)
    ]
    images = [sample.tokens[: sample.prompt].count(reader.image_token) // 4 for sample in samples]
    assert images == [0, 1, 2]
    assert [bool(sample.inputs) for sample in samples] == [False, True, True]
    decode = reader.tokenizer.decode
    for number, sample in enumerate(samples):
        counted = [token for token, counts in zip(sample.tokens, sample.counts().tolist()) if counts]
        first = "It is so many.<|eos|>" if number < 2 else ""  # answers before the last image are prompt
        assert decode(counted) == f"{first}It is {number} of them."
    few = ("--samples", "6", "--held-out", "2", "--seqlen", "96", "--batch", "3", "--epochs", "1", "--evaluations", "1")
    result = dfq("draft", "train", "--model", hub, "--dataset", rows, "--out", tmp_path / "draft", *few)
    assert result.exit_code == 0, result.output
    options = ("--dataset", rows, "--count", "3", "--max-new-tokens", "8", "--out", tmp_path / "e.json")
    result = dfq(
        "draft", "eval", "--model", hub, "--draft", tmp_path / "draft", *options, "--chain", "2", "--require-lossless"
    )
    assert result.exit_code == 0, result.output
    assert read_json(tmp_path / "e.json")["shapes"]["chain 2"]["identical"] == "3/3"


def test_what_does_not_fit_is_refused(hub: Path, dfq: Any, tmp_path: Path) -> None:
    Image.new("RGB", (20, 12)).save(tmp_path / "a.png")
    row = {"messages": [{"role": "user", "content": "<image><|image|>?"}], "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in hub.iterdir():
        if file.name not in PROCESSOR_FILES:
            (bare / file.name).symlink_to(file)
    train = (
        "draft",
        "train",
        "--regenerate",
        "--dataset",
        tmp_path / "rows.jsonl",
        "--out",
        tmp_path / "no",
        "--model",
    )
    ask = ("--prompt", "x", "--image", tmp_path / "a.png")
    for arguments, message in (
        ((*train, hub), "line 1"),
        ((*train, bare), "copy them from the model"),
        (("draft", "generate", "--model", bare, *ask), "copy them from the model"),
        (("generate", "--model", hub, "--prompt", "<|image|>"), "image"),
    ):
        result = dfq(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
