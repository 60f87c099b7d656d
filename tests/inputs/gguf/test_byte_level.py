"""Byte-level tokenizers: every tag splits text as llama.cpp does; what another engine would do differently is refused."""

from __future__ import annotations

import json
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

MARKS = "\u0301"  # an accent of its own: publishers' normalizers and expressions treat it differently from llama.cpp
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


def rebuilt(file: Path, folder: Path) -> Any:
    """The tokenizer of a file as transformers loads it."""
    model = read_model(file)
    folder.mkdir()
    for name, content in model.tokenizer.items():
        (folder / name).write_text(content)
    (folder / "config.json").write_text(json.dumps(model.config))
    return load_tokenizer(folder)


def test_equal_to_the_original(write: Callable[..., Path], tmp_path: Path) -> None:
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
def test_every_tag_splits_as_llama_cpp_does(tag: str, write: Callable[..., Path], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file = write(lambda writer: writer.add_tokenizer_pre(tag))
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours = rebuilt(file, tmp_path / "out")
    for text in TEXTS + ([] if tag in DIFFERENT else random_texts(200, 1)):
        expected = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ours(text, add_special_tokens=False)["input_ids"] == expected, text
