"""Byte-level tokenizers: every tag splits text as llama.cpp does; what is damaged or unknown is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfrot import reference
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.model import read_model
from dfrot.inputs.gguf.pre_tokenizers import PRE_TOKENIZERS

TEXTS = [
    "Hello  world\n\n\t tabs 12345 67.8 don't DON'T we'LL caf\u00e9 \u4f60\u597d\u4e16\u754c \U0001f389 x\u00a0y",
    "  leading, trailing  ",
    "def f(x):\r\n    return x**2  # \u00bd \uff14\uff12\n",
    "<|bos|>a special token<|eos|> and \x0c a user-defined one",
    "",
]
DIFFERENT = {"tekken"}  # llama.cpp's engine knows no classes of cases; its expression is another on purpose


def random_texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    pool = "abzAZ 019'\"\n\t\r \u00e9\u4f60\U0001f389\u2014.,!<|>_  $+=~^"
    return ["".join(generator.choice(pool) for _ in range(40)) for _ in range(count)]


@pytest.fixture
def write(kit: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Write a small model whose tokenizer is changed by `change(writer)`."""
    model = kit.random_model("llama, tied head", num_hidden_layers=1, hidden_size=32)

    def write(change: Callable[[Any], None] | None = None) -> Path:
        return kit.write_gguf(tmp_path / "model.gguf", model, change=change)  # type: ignore[no-any-return]

    return write


def test_equal_to_the_original(write: Callable[..., Path], rebuilt: Callable[..., Any], tmp_path: Path) -> None:
    ours, original = rebuilt(write(), tmp_path / "out"), load_tokenizer(reference.path())
    for text in TEXTS + random_texts(200, 0):
        assert ours(text)["input_ids"] == original(text)["input_ids"], text
        assert ours(text, text)["input_ids"] == original(text, text)["input_ids"]
        ids = original(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == original.decode(ids)
    messages = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(messages, tokenize=False) == original.apply_chat_template(messages, tokenize=False)
    assert (ours.bos_token_id, ours.eos_token_id) == (0, 1)


@pytest.mark.parametrize("tag", PRE_TOKENIZERS)
def test_every_tag_splits_as_llama_cpp_does(
    tag: str, write: Callable[..., Path], rebuilt: Callable[..., Any], tmp_path: Path
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file = write(lambda writer: writer.add_tokenizer_pre(tag))
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours = rebuilt(file, tmp_path / "out")
    for text in TEXTS + ([] if tag in DIFFERENT else random_texts(200, 1)):
        expected = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ours(text, add_special_tokens=False)["input_ids"] == expected, text


REFUSED: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "another tag": (
        lambda w: w.add_tokenizer_pre("bloom"),
        UnsupportedError,
        "pre-tokenizer 'bloom' is unknown to dfq",
    ),
    "no tag": (
        lambda w: w.kv_data[0].pop("tokenizer.ggml.pre"),
        UnsupportedError,
        "tokenizer.ggml.pre is missing, so how text is split is unknown; convert the model again",
    ),
    "another model": (lambda w: w.add_tokenizer_model("t5"), UnsupportedError, "tokenizer 't5' cannot be read"),
    "a merge of no tokens": (
        lambda w: w.add_token_merges(["a b", "@@ @@"]),
        InputError,
        "merge .* is no pair of tokens that makes a token",
    ),
    "more tokens than rows": (
        lambda w: w.add_token_list([f"t{index}" for index in range(5000)]),
        InputError,
        "5000 tokens, the embedding has 4096 rows",
    ),
    "types of other tokens": (lambda w: w.add_token_types([1, 2]), InputError, "token_type has 2 elements, 4096 are"),
    "a token twice": (
        lambda w: w.add_token_list(["same"] * 4095 + ["other"]),
        InputError,
        "tokens 0 and 1 are both 'same'",
    ),
    "an id beyond the tokens": (lambda w: w.add_eos_token_id(4096), InputError, "eos_token_id is '4096', an id below"),
    "a text for an id": (
        lambda w: w.add_string("tokenizer.ggml.bos_token_id", "x"),
        InputError,
        "bos_token_id is 'x', an integer from 0 on is needed",
    ),
    "a template that is no text": (
        lambda w: w.add_uint32("tokenizer.chat_template", 3),
        InputError,
        "chat_template is '3', a string is needed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, write: Callable[..., Path]) -> None:
    change, error, message = REFUSED[what]
    with pytest.raises(error, match=message) as caught:
        read_model(write(change))
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


def named(**texts: int) -> Callable[[Any], None]:
    """Give control tokens other texts."""

    def change(writer: Any) -> None:
        tokens, types = [f"t{index}" for index in range(4096)], [1] * 4096
        for text, index in texts.items():
            tokens[index], types[index] = text, 3
        writer.add_token_types(types)
        tokens[2], tokens[3] = "t", "4"
        writer.add_token_list(tokens)
        writer.add_token_merges(["t 4"])

    return change


def test_what_ends_a_text(write: Callable[..., Path]) -> None:
    """The file's end of text, its end of turn, and control tokens that end a turn in every model; one list in all."""
    change = named(**{"<|endoftext|>": 7, "<|im_end|>": 9})
    assert read_model(write(change)).config["eos_token_id"] == [1, 7, 9]

    def with_turn(writer: Any) -> None:
        change(writer)
        writer.add_eot_token_id(5)
        writer.add_eos_token_id(9)

    file = write(with_turn)
    assert read_model(file).config["eos_token_id"] == [9, 5, 7]
    assert read_model(file, tokenizer=False).config == read_model(file).config

    def without(writer: Any) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.eos_token_id")
        writer.kv_data[0].pop("tokenizer.ggml.bos_token_id")
        writer.add_add_bos_token(False)

    config = read_model(write(without)).config
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)
