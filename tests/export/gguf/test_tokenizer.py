"""Tokenizers inside GGUF: llama.cpp reads text as the original does, for every kind that is exported."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import UnsupportedError
from dfrot.export.gguf import splitting
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.run import export

pytest.importorskip("gguf")

TEXT = [
    "the thin thing in the inn, 12 or 1234567 times; it's THEIRS, isn't it?",
    "def f(x):\n    return x ** 2  # twice   as much\n\n\n",
    "Grüße aus Köln – señor, 東京 and 🙂🙂 !!! ... \t tabs\r\n",
] * 30
PIECES = ["the", " the", "THE", "'s", "'LL", " 1", "1234", "  ", "   \n", "\n\n", "\r\n", "\t", "é", "ß", "日本", "🙂"]
PIECES += [" !", "...", "x=", "(", " (", "_", "a1b2", "<", ">", " – ", "²", "½"]


def byte_level(folder: Path, splits: tuple[str, ...], ignore_merges: bool) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps: list[Any] = []
    for split in splits:
        if split == "Digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif split != "ByteLevel":
            steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="ByteLevel" in splits))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    _save(folder, made)


def fallback(folder: Path, kind: str) -> None:
    """As transformers writes Llama 2's: the merges are all pairs that make a token, in the order of the tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    seed = Tokenizer(models.BPE())
    seed.normalizer = normalizers.Replace(" ", "▁")
    seed.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = [token for token, _ in sorted(seed.get_vocab().items(), key=lambda item: item[1])]
    learned = [token for token in learned if not set(token) & set("ü東🙂")]  # left to the bytes
    if "▁" not in learned:
        learned.insert(0, "▁")
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    vocab |= {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocab |= {token: index + len(vocab) for index, token in enumerate(learned)}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(learned, key=vocab.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(folder, made)


def _save(folder: Path, made: Any) -> None:
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def compare(model: Path, out: Path, begin: str = "") -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    export(model, "gguf", out)
    theirs = llama_cpp.Llama(model_path=str(out / FILE_NAME), vocab_only=True, verbose=False)
    ours = load_tokenizer(model)
    draw = random.Random(0)
    for _ in range(150):
        text = begin + "".join(draw.choice(PIECES) for _ in range(10))
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == ours(text)["input_ids"], repr(text)


@pytest.mark.parametrize("splits", splitting.PRE_TOKENIZER_TAGS, ids=splitting.PRE_TOKENIZER_TAGS.get)
def test_byte_level(splits: tuple[str, ...], kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", vocab_size=352)
    byte_level(model, splits, splitting.PRE_TOKENIZER_TAGS[splits] in splitting.IGNORE_MERGES_TAGS)
    compare(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_byte_fallback(kind: str, kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", vocab_size=512, bos_token_id=1, eos_token_id=2)
    fallback(model, kind)
    # Mistral's Metaspace puts no second space before a text that begins with one; llama.cpp always puts one
    compare(model, tmp_path / "out", "x" if kind == "mistral" else "")


def test_merging_unlike_llama_cpp_is_refused(kit: Any, tmp_path: Path) -> None:
    model = kit.build(tmp_path / "model", vocab_size=352)
    byte_level(model, ("ByteLevel",), ignore_merges=True)
    with pytest.raises(UnsupportedError, match="ignore_merges"):
        export(model, "gguf", tmp_path / "out")
    fallback(kit.build(tmp_path / "other", vocab_size=512), "llama")
    value = json.loads((tmp_path / "other/tokenizer.json").read_text())
    value["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(UnsupportedError, match="spaces"):
        export(tmp_path / "other", "gguf", tmp_path / "out")
