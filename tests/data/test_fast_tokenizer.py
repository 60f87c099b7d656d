"""A tokenizer.json that is read without transformers gives transformers' ids; where it would not, it is not read so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dfrot import reference
from dfrot.data.fast_tokenizer import FastTokenizer, open_fast_tokenizer, open_tokenizer
from dfrot.data.tokenizer import TokenBytes, load_tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "", "a", "Hello  world\n\n\tfoo", "def f(x):\n    return x + 1\n", "na\u00efve caf\u00e9 \u6f22\u5b57 \U0001f600",
    "e\u0301 \u212b \ufb01 \u00bd \u202e \x00", "<|im_start|>user\nhi<|im_end|>", "<|endoftext|> <s></s>  x",
    "1234567 3.14e-10", "  leading", "trailing  ", "<s>",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% if m.name is defined %}!{% endif %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(kind="bytes", model_type="llama", **settings) -> a folder with a small trained tokenizer."""

    def build(kind: str = "bytes", model_type: str = "llama", change: Any = None, **settings: Any) -> Path:
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "qwen":
            split = pre_tokenizers.Split(Regex(QWEN), "isolated")
            steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
        tokenizer.add_special_tokens(SPECIAL)
        if kind != "qwen":
            bos = ("<s>", tokenizer.token_to_id("<s>"))
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
        if change is not None:
            change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, **settings}))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return tmp_path

    return build


def same(folder: Path) -> FastTokenizer:
    """Require that the fast tokenizer of a folder does what transformers' does."""
    ours, theirs = open_fast_tokenizer(folder), load_tokenizer(folder)
    assert ours is not None
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours(text, add_special_tokens=special)["input_ids"] == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    our_bytes, their_bytes = TokenBytes(ours), TokenBytes(theirs)
    assert all(our_bytes(token) == their_bytes(token) for token in range(len(theirs) + 3))
    return ours


def test_the_reference_model() -> None:
    same(reference.path())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_class": "TokenizersBackend", "pad_token": "<|endoftext|>", "unk_token": None},
        {"add_bos_token": False, "add_eos_token": True, "clean_up_tokenization_spaces": True},
        {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        {"additional_special_tokens": ["<|im_start|>"], "model_max_length": 8, "padding_side": "left"},
        {"eos_token": "a new token", "pad_token": "Hello", "extra_special_tokens": ["f(", "another"]},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False}},
    ],
)
def test_settings(write: Write, settings: dict[str, Any]) -> None:
    same(write(**settings))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"])
def test_qwen(write: Write, model_type: str, name: str) -> None:
    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    same(write("qwen", model_type, tokenizer_class=name, add_bos_token=False, **tokens))


def test_qwen_normalizes_whatever_the_file_says(write: Write) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.normalizer = None

    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    ours = same(write("qwen", "qwen2", change, tokenizer_class="Qwen2Tokenizer", **tokens))
    assert ours("e\u0301") == ours("\u00e9")


def test_truncation_in_the_file_is_not_applied(write: Write) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.enable_truncation(4)

    same(write(change=change))


def _lstrip(tokenizer: Any) -> None:
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])


@pytest.mark.parametrize(
    ("kind", "model_type", "change", "settings"),
    [
        ("bytes", "gemma2", None, {}),
        ("bytes", "llama", None, {"tokenizer_class": "LlamaTokenizerFast"}),
        ("bytes", "llama", None, {"tokenizer_class": None}),
        ("bytes", "llama", None, {"split_special_tokens": True}),
        ("bytes", "llama", None, {"image_token": "<|im_start|>"}),
        ("qwen", "qwen2", None, {"eos_token": "never seen"}),
        ("bytes", "llama", None, {"chat_template": [{"name": "default", "template": "x"}]}),
        ("bytes", "llama", None, {"added_tokens_decoder": {"0": {"content": "<s>", "special": True}}}),
        ("bytes", "llama", _lstrip, {"mask_token": "<mask>"}),
        ("bytes", "llama", lambda tokenizer: tokenizer.enable_padding(length=64), {}),
        ("bytes", "qwen2", None, {}),
        ("bytes", "qwen3", None, {"tokenizer_class": "Qwen2Tokenizer"}),
        ("qwen", "qwen2", None, {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}),
    ],
)
def test_what_is_left_to_transformers(
    write: Write, kind: str, model_type: str, change: Any, settings: dict[str, Any]
) -> None:
    assert open_fast_tokenizer(write(kind, model_type, change, **settings)) is None


@pytest.mark.parametrize("name", ["tekken.json", "special_tokens_map.json", "added_tokens.json"])
def test_other_files_of_tokenizers_are_left_to_transformers(write: Write, name: str) -> None:
    folder = write()
    (folder / name).write_text("{}")
    assert open_fast_tokenizer(folder) is None


def test_a_folder_without_tokenizer_json_is_read_by_transformers(write: Write) -> None:
    folder = write()
    theirs = load_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = open_tokenizer(folder)
    assert not isinstance(tokenizer, FastTokenizer)
    text = "line 7: the square"
    assert tokenizer(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "{}", '{"model": 3}', '{"model": {"type": "BPE", "vocab": []}}']
    + ['{"model": {"type": "BPE", "vocab": {}}, "added_tokens": [4]}', '{"model": {"type": "BPE", "vocab": {}}}'],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(write: Write, content: str) -> None:
    from dfrot.errors import InputError

    folder = write()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="no usable tokenizer"):
        open_tokenizer(folder)


@pytest.mark.parametrize("stored", ["file", "settings"])
def test_conversations(write: Write, stored: str) -> None:
    folder = write(**({"chat_template": TEMPLATE} if stored == "settings" else {}))
    if stored == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    ours, theirs = same(folder), load_tokenizer(folder)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "<s> hi", "name": None}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for options in ({}, {"tools": tools}, {"bos_token": "?"}):
        call: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **options}
        text = ours.apply_chat_template(messages, **call)
        assert text == theirs.apply_chat_template(messages, **call)
        assert text.endswith(">")
