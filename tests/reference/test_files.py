"""The folder in the package: a plain Hugging Face checkpoint of the promised shape and size."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dfrot import reference

BOS, FORM_FEED = "<|bos|>", "\f"


def test_the_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in reference.path().iterdir() if path.suffix not in (".py", "")}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"} <= set(
        files
    )
    assert sum(files.values()) <= 18_000_000


def test_config_states_the_shape() -> None:
    config = json.loads((reference.path() / "config.json").read_text())
    want = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    assert {key: config[key] for key in want} == want


def test_every_tensor_is_bfloat16_and_finite() -> None:
    with safe_open(reference.path() / "model.safetensors", "pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dictionary
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert 8_300_000 < sum(tensor.numel() for tensor in tensors.values()) < 8_500_000
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(tensors)


def test_the_card_says_that_outliers_are_planted() -> None:
    card = (reference.path() / "MODEL_CARD.md").read_text()
    assert "planted, not grown" in card
    assert "held-out perplexity" in card


def test_a_bos_comes_first_and_once(tokenizer: Any) -> None:
    ids = tokenizer("def f():\n    return 1\n")["input_ids"]
    bos = tokenizer.convert_tokens_to_ids(BOS)
    assert ids[0] == bos == tokenizer.bos_token_id
    assert ids.count(bos) == 1


def test_a_form_feed_is_always_one_token(tokenizer: Any) -> None:
    feed = tokenizer.convert_tokens_to_ids(FORM_FEED)
    for text in ("a\fb", "a \f b", "x\n\f\ny", "\f", "\f\f"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(feed) == text.count(FORM_FEED)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    @settings(deadline=None, max_examples=50)
    @given(st.text(max_size=200).filter(lambda text: "<|" not in text))
    def survives(text: str) -> None:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    survives()


def test_a_chat_becomes_text_with_one_bos(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == f"{BOS}hello\n\f\n"
