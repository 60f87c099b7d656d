"""Sentencepiece tokenizers: merges follow from scores, unknown characters become bytes; as llama.cpp tokenizes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.model import read_model

TEXT = [
    "the thin thing in the inn, 12 or 1234567 times; it's THEIRS, isn't it?",
    "def f(x):\n    return x ** 2  # twice   as much\n\n\n",
    "Gr\u00fc\u00dfe aus K\u00f6ln \u2013 se\u00f1or, \u6771\u4eac and !!! ... \t tabs\r\n",
] * 30
PIECES = ["the", " the", "THE", "'s", " 1", "1234", "  ", "   \n", "\n\n", "\t", "\u00e9", "\u00df", "\u65e5\u672c"]
PIECES += [
    "\U0001f642",
    " !",
    "...",
    "x=",
    "(",
    " (",
    "_",
    "<",
    ">",
    " \u2013 ",
    "\u00bd",
    "thing",
    " inn",
    "<s>",
    "<x>",
]
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def vocabulary(rows: int, spaces: bool = False) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types. spaces: runs of spaces are tokens stored as they are, like Gemma's."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    seed = Tokenizer(models.BPE())
    seed.normalizer = normalizers.Replace(" ", SPACE)
    seed.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=220, show_progress=False))
    ordered = [text for text, _ in sorted(seed.get_vocab().items(), key=lambda item: item[1])]
    pieces = [text for text in ordered if not set(text) & set("\u00fc\u6771")]  # left to the bytes
    merged = [text for text in pieces if len(text) > 1 and text.strip(SPACE)]
    single = [text for text in pieces if len(text) == 1]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    runs = [" " * count for count in (2, 3, 4)] if spaces else [SPACE * 2]
    tokens += ["<x>", *runs]
    types += [USER_DEFINED] + ([USER_DEFINED] * 3 if spaces else [NORMAL])
    scores = [0.0] * len(tokens)
    tokens += merged + single
    types += [NORMAL] * len(merged + single)
    scores += [-float(rank) for rank in range(len(merged))] + [-1000.0 - rank for rank in range(len(single))]
    unused = range(len(tokens), rows)
    return tokens + [f"[PAD{index}]" for index in unused], scores + [0.0] * len(unused), types + [UNUSED] * len(unused)


def changed(writer: Any, rows: int, prefix: bool | None = True, spaces: bool = False) -> None:
    """Put the vocabulary in place of the byte-level one."""
    tokens, scores, types = vocabulary(rows, spaces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for role, index in (("bos", 1), ("eos", 2), ("unk", 0)):
        getattr(writer, f"add_{role}_token_id")(index)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)


@pytest.fixture
def write(kit: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Write a small model with a sentencepiece tokenizer, changed further by `change(writer)`."""

    def write(name: str = "llama, tied head", change: Callable[[Any], None] | None = None, **options: Any) -> Path:
        model = kit.random_model(name, hidden_size=32, vocab_size=512)

        def both(writer: Any) -> None:
            changed(writer, 512, **options)
            if change is not None:
                change(writer)

        return kit.write_gguf(tmp_path / "model.gguf", model, change=both)  # type: ignore[no-any-return]

    return write


def texts() -> list[str]:
    draw = random.Random(0)
    return ["", " ", "  two", *("".join(draw.choice(PIECES) for _ in range(10)) for _ in range(200))]


@pytest.mark.parametrize("prefix", [True, False, None])
def test_as_llama_cpp_tokenizes(
    prefix: bool | None, write: Callable[..., Path], rebuilt: Callable[..., Any], tmp_path: Path
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file = write(prefix=prefix)
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours = rebuilt(file, tmp_path / "out")
    for text in texts():
        if {"<s>", "<x>"} & {text[at : at + 3] for at in range(len(text))}:
            continue  # llama.cpp puts another space behind special tokens, transformers does not
        assert ours(text)["input_ids"] == theirs.tokenize(text.encode(), add_bos=True, special=True), text
        assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True).strip() == text.strip()


def test_special_tokens_stay_whole(write: Callable[..., Path], rebuilt: Callable[..., Any], tmp_path: Path) -> None:
    ours = rebuilt(write(prefix=False), tmp_path / "out")
    ids = ours("the<x> inn</s>", add_special_tokens=False)["input_ids"]
    assert ours.convert_ids_to_tokens(ids)[-1] == "</s>"
    assert "<x>" in ours.convert_ids_to_tokens(ids)
    assert ours.decode(ids, skip_special_tokens=True) == "the<x> inn"
    assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id) == (1, 2, 0)


def test_gemma_merges_in_the_order_of_its_tokens(
    write: Callable[..., Path], rebuilt: Callable[..., Any], tmp_path: Path
) -> None:
    """Runs of spaces are ordinary tokens; scores are not looked at."""
    file = write("gemma3", prefix=False, spaces=True, change=lambda writer: writer.add_token_scores([-1000.0] * 512))
    ours = rebuilt(file, tmp_path / "out")
    tokens = vocabulary(512, spaces=True)[0]
    order = {text: index for index, text in enumerate(tokens)}
    assert ours.convert_ids_to_tokens(ours("a  b", add_special_tokens=False)["input_ids"])[1] == SPACE * 2
    for text in texts():
        if "<" in text:
            continue
        assert ours.decode(ours(text, add_special_tokens=False)["input_ids"]) == text
    merges = json.loads((tmp_path / "out/tokenizer.json").read_text())["model"]["merges"]
    ranks = [order.get("".join(pair), order.get("".join(pair).replace(SPACE, " "))) for pair in merges]
    assert ranks == sorted(ranks)


REFUSED: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "no scores": (lambda w: w.kv_data[0].pop("tokenizer.ggml.scores"), InputError, "no tokenizer.ggml.scores"),
    "spaces removed": (
        lambda w: w.add_remove_extra_whitespaces(True),
        UnsupportedError,
        "remove_extra_whitespaces is True",
    ),
    "a score that is no number": (
        lambda w: w.add_token_scores([float("nan")] * 512),
        InputError,
        "scores .* number",
    ),
    "unknown beyond the tokens": (lambda w: w.add_unk_token_id(512), InputError, "unknown_token_id is '512'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, write: Callable[..., Path]) -> None:
    change, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        read_model(write(change=change))
